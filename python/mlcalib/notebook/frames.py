"""Layers down, languages across, as pandas DataFrames."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mlcalib.common.optional import optional

if TYPE_CHECKING:
    from pandas import DataFrame, MultiIndex


def loss_frame(losses: Mapping[str, Mapping[str, float]]) -> "DataFrame":
    """Return losses per layer and language as a DataFrame.

    Args:
        losses: linear → language → loss per token: ``QuantizedModel.losses``, or what
            ``mlcalib.evaluation.layer_losses`` returns.

    Returns:
        Rows (block, linear), a column for each language; NaN where an expert saw no token of it.

    Raises:
        ImportError: pandas is not installed.
        ValueError: no losses, as of a model that was quantized without calibration.
    """
    return _frame(losses, "losses")


def range_frame(ranges: Mapping[str, Mapping[str, tuple[float, float]]]) -> "DataFrame":
    """Return the extremes of each linear's input per language as a DataFrame.

    Args:
        ranges: linear → language → (low, high): ``QuantizedModel.ranges``.

    Returns:
        Rows (block, linear); columns (bound, language) with the bounds ``low``, ``high`` and
        ``absmax``, the greater of the two in magnitude.

    Raises:
        ImportError: pandas is not installed.
        ValueError: no ranges, as of a model that was quantized without calibration.
    """
    low, high = (
        _frame(
            {
                name: {code: pair[at] for code, pair in by_language.items()}
                for name, by_language in ranges.items()
            },
            "ranges",
        )
        for at in (0, 1)
    )
    pandas = optional("pandas", "notebook", "range_frame")
    bounds = {"low": low, "high": high, "absmax": high.where(high >= -low, -low)}
    joined: DataFrame = pandas.concat(bounds, axis="columns", names=["bound", "language"])
    return joined


def _frame(values: Mapping[str, Mapping[str, float]], what: str) -> "DataFrame":
    pandas = optional("pandas", "notebook", f"A DataFrame of {what}")
    if not any(values.values()):
        raise ValueError(
            f"There are no {what} per language; quantize with a calibration set (rtn takes one "
            "too), which they are measured on."
        )
    frame: DataFrame = pandas.DataFrame.from_dict(values, orient="index", dtype=float)
    frame.index = _layers(pandas, frame.index)
    frame.columns.name = "language"
    return frame


def _layers(pandas: Any, names: Iterable[str]) -> "MultiIndex":
    """Split ``model.layers.3.mlp.up_proj`` into block 3 and linear ``mlp.up_proj``."""
    pairs = []
    for name in names:
        found = re.match(r".*?\.(\d+)\.(.+)", name)
        if found is None:
            raise ValueError(f"'{name}' is not the name of a linear in a block of a model.")
        pairs.append((int(found[1]), found[2]))
    index: MultiIndex = pandas.MultiIndex.from_tuples(pairs, names=["block", "linear"])
    return index
