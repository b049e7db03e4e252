"""Which input channels LLM.int8() multiplies apart, language by language."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from mlcalib.calibration_sets import Stream
from mlcalib.evaluation.perplexity import score
from mlcalib.models.llm_int8 import Outliers, counted_outliers
from mlcalib.results.rows import Row, versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOWS = 4
"""Of each text, from its beginning: outliers are looked for in so many."""

TASK = "llm_int8"


def outliers_of(
    model: "PreTrainedModel", texts: Mapping[str, Stream], *, seq_len: int, tokens: int
) -> dict[str, dict[str, Outliers]]:
    """Return language → linear → how often its input channels had outliers.

    Args:
        model: of ``run_in_int8``.
        texts: language → text, of which the first ``WINDOWS`` windows are read.
        seq_len: tokens of a window.
        tokens: at most so many of each text.
    """
    found = {}
    for code, text in texts.items():
        count = min(tokens, WINDOWS * (seq_len - len(text.begin)), len(text.ids) - 1)
        with counted_outliers(model) as counts, torch.no_grad():
            score(model, text, tokens=count, seq_len=seq_len)
        found[code] = counts
    return found


def outlier_rows(
    found: Mapping[str, Mapping[str, Outliers]],
    model: str,
    method: str,
    calibration: str,
    windows: str = "",
) -> list[Row]:
    """Return how many channels are multiplied apart as rows of results.

    The metrics are ``outlier_channels``, which a linear has in a window on average;
    ``outlier_share``, the same as a share of its channels; and ``outlier_linears``, the share of
    linears that have any. ``n`` is the number of windows.

    Args:
        found: as ``outliers_of`` returns.
        model: see ``Row``, also for ``method``, ``calibration`` and ``windows``.
        method: see above.
        calibration: see above.
        windows: see above.
    """
    rows = []
    for code, linears in found.items():
        means = [each.channels.sum() / each.sequences for each in linears.values()]
        widths = [len(each.channels) for each in linears.values()]
        values = {
            "outlier_channels": sum(map(float, means)) / len(means),
            "outlier_share": sum(float(m) / w for m, w in zip(means, widths, strict=True))
            / len(means),
            "outlier_linears": sum(bool(mean) for mean in means) / len(means),
        }
        rows += [
            Row(
                model=model,
                method=method,
                calibration=calibration,
                language=code,
                task=TASK,
                metric=metric,
                value=value,
                stderr=None,
                n=next(iter(linears.values())).sequences,
                versions=versions(),
                windows=windows,
            )
            for metric, value in values.items()
        ]
    return rows
