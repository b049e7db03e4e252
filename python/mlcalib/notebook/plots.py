"""Heat maps: blocks across, languages down, a panel for each linear of a block."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlcalib.notebook.figures import new_figure
from mlcalib.notebook.frames import loss_frame, range_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray
    from pandas import DataFrame


def loss_heatmap(
    losses: Mapping[str, Mapping[str, float]],
    reference: str | Mapping[str, Mapping[str, float]] | None = None,
) -> "Figure":
    """Draw the loss of every linear in every language as a multiple of a reference.

    Losses differ by orders of magnitude between layers; what a language pays shows in the ratio.
    Experts are averaged over.

    Args:
        losses: linear → language → loss per token: ``QuantizedModel.losses``, or what
            ``mlcalib.evaluation.layer_losses`` returns.
        reference: a language; the losses of another model on the same text, layer by layer and
            language by language; or None for the geometric mean of the layer's languages.

    Returns:
        A figure. A notebook shows it; ``savefig`` writes it.

    Raises:
        ImportError: matplotlib or pandas is not installed.
        ValueError: no losses; a reference that they do not have.
    """
    frame = _kinds(loss_frame(losses))
    if isinstance(reference, Mapping):
        ratio = frame / _kinds(loss_frame(reference))
        return _heatmaps(ratio, "loss ÷ that of the reference")
    return _heatmaps(*_relative(frame, reference, "loss"))


def range_heatmap(
    ranges: Mapping[str, Mapping[str, tuple[float, float]]], reference: str | None = None
) -> "Figure":
    """Draw the largest magnitude of every linear's input in every language, likewise.

    Linears that read the same input share a panel. Of experts the largest counts.

    Args:
        ranges: linear → language → (low, high): ``QuantizedModel.ranges``.
        reference: a language, or None for the geometric mean of the layer's languages.

    Returns:
        A figure; see ``loss_heatmap``.

    Raises:
        ImportError: matplotlib or pandas is not installed.
        ValueError: no ranges; a reference that they do not have.
    """
    frame = _kinds(range_frame(ranges)["absmax"], "max")
    return _heatmaps(*_relative(frame, reference, "largest |input|"))


def _kinds(frame: "DataFrame", how: str = "mean") -> "DataFrame":
    """Take experts of one block and kind together."""
    kinds = [re.sub(r"\.\d+\.", ".", linear) for linear in frame.index.get_level_values("linear")]
    blocks = frame.index.get_level_values("block")
    return frame.groupby([blocks, np.array(kinds)], sort=False).agg(how)


def _relative(frame: "DataFrame", reference: str | None, what: str) -> "tuple[DataFrame, str]":
    if reference is None:
        with np.errstate(divide="ignore"):
            mean = np.exp(np.log(frame).mean(axis="columns"))
        return frame.div(mean, axis="index"), f"{what} ÷ the mean of all languages"
    if reference not in frame:
        raise ValueError(
            f"The reference '{reference}' is none of the languages measured: {', '.join(frame)}."
        )
    return frame.div(frame[reference], axis="index"), f"{what} ÷ that of '{reference}'"


def _heatmaps(ratio: "DataFrame", label: str) -> "Figure":
    panels = _panels(ratio)
    blocks = ratio.index.get_level_values(0).unique()
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    width = columns * min(max(0.16 * len(blocks), 2.5), 8) + 2
    figure = new_figure(
        "A heat map",
        figsize=(width, rows * (0.19 * len(ratio.columns) + 0.75)),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    limit = _limit(ratio)
    for each, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        image = _draw(each, panel.reindex(blocks), limit)
        each.set_title(title, fontsize=9)
    for each in axes.flat[len(panels) :]:
        each.remove()
    _colour_bar(figure, image, list(axes.flat[: len(panels)]), label, limit)
    for each in axes.flat[len(panels) - columns : len(panels)]:
        each.set_xlabel("block", fontsize=9)
    return figure


def _panels(ratio: "DataFrame") -> "dict[str, DataFrame]":
    """Return title → [blocks, languages]; one panel for linears whose rows are the same."""
    found: list[tuple[list[str], DataFrame]] = []
    for kind in ratio.index.get_level_values(1).unique():
        rows = ratio.xs(kind, level=1)
        twin = next((names for names, other in found if rows.equals(other)), None)
        if twin is None:
            found.append(([kind], rows))
        else:
            twin.append(kind.rpartition(".")[2])
    return {", ".join(names): rows for names, rows in found}


def _limit(ratio: "DataFrame") -> float:
    """Return where colours end, in doublings: nearly all values are within; 0.5 or more."""
    doublings = np.abs(_doublings(ratio))
    finite = doublings[np.isfinite(doublings)]
    return max(0.5, float(np.quantile(finite, 0.99))) if finite.size else 0.5


def _doublings(ratio: "DataFrame") -> "NDArray[np.float64]":
    with np.errstate(divide="ignore", invalid="ignore"):
        doublings: NDArray[np.float64] = np.log2(ratio.to_numpy(dtype=float))
    return doublings


def _draw(axes: "Axes", panel: "DataFrame", limit: float) -> "AxesImage":
    axes.set_facecolor("0.85")  # where there is no value
    blocks, languages = len(panel.index), list(panel.columns)
    image = axes.imshow(_doublings(panel).T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(languages)), languages, fontsize=8)
    shown = range(0, blocks, max(1, math.ceil(blocks / 12)))
    axes.set_xticks(shown, [str(panel.index[at]) for at in shown], fontsize=8)
    axes.tick_params(length=2, labelbottom=True)
    return image


def _colour_bar(
    figure: "Figure", image: "AxesImage", axes: "Sequence[Axes]", label: str, limit: float
) -> None:
    ticks = {1 / 1.5: "0.67", 1 / 1.25: "0.8", 1.25: "1.25", 1.5: "1.5"} if limit < 2 else {}
    for power in range(math.floor(limit) + 1):
        ticks |= {2.0**power: f"{2**power}", 2.0**-power: f"1/{2**power}" if power else "1"}
    ticks = {ratio: text for ratio, text in ticks.items() if abs(math.log2(ratio)) <= limit}
    bar = figure.colorbar(image, ax=axes, extend="both", aspect=35, pad=0.02)
    bar.set_ticks([math.log2(ratio) for ratio in ticks], labels=list(ticks.values()))
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)
