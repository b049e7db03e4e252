"""Figures of heat maps."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mlcalib.common.optional import optional
from mlcalib.notebook.plots import loss_heatmap
from mlcalib.report.page.canvas import INK, Records, colour_map, new
from mlcalib.report.page.colours import diverging, ink, sequential
from mlcalib.report.page.words import full_name, signed
from mlcalib.report.study_report.comparison import Grid
from mlcalib.report.study_report.layers import place, relative
from mlcalib.report.study_report.results import ModelReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rises(grid: Grid, end: float) -> Callable[[], "Figure"]:
    """Languages × settings, the best of each language boxed."""

    def draw() -> "Figure":
        columns, languages = [*grid.references, *grid.columns], grid.measured.languages
        values = np.full((len(languages), len(columns)), np.nan)
        for row, code in enumerate(languages):
            for at, column in enumerate(columns):
                if (rise := grid.rises.get((column.variant, code))) is not None:
                    values[row, at] = rise.value
        figure = new(2.9 + 0.72 * len(columns), 1.0 + 0.27 * len(languages))
        axes = figure.subplots()
        image = axes.imshow(
            values, cmap=colour_map(diverging, -1), vmin=-end, vmax=end, aspect="auto"
        )
        for row, code in enumerate(languages):
            for at, column in enumerate(columns):
                _write(axes, grid, column.variant, code, (at, row), end)
        axes.set_yticks(range(len(languages)), [full_name(code) for code in languages])
        labels = [column.label for column in columns]
        axes.set_xticks(range(len(columns)), labels, rotation=35, ha="right")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="rise of token loss (nats)", aspect=30, pad=0.01)
        return figure

    return draw


def _write(
    axes: "Axes", grid: Grid, variant: str, code: str, at: tuple[int, int], end: float
) -> None:
    rise = grid.rises.get((variant, code))
    if rise is None:
        axes.text(*at, "not measured", ha="center", va="center")
        return
    best = grid.best(code) == variant
    axes.text(
        *at,
        signed(rise.value),
        ha="center",
        va="center",
        fontsize=8,
        color=ink(diverging(rise.value / end)) if rise.significant else "#777777",
        fontweight="bold" if best else "normal",
        fontstyle="normal" if rise.significant else "italic",
    )
    if best:
        patches = optional("matplotlib.patches", "report", "A report")
        corner = (at[0] - 0.46, at[1] - 0.44)
        axes.add_patch(patches.Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=INK, lw=1.2))


def rise_records(grid: Grid) -> Records:
    """Return the data behind ``rises``."""
    return [
        {
            "variant": variant,
            "language": code,
            "rise": rise.value,
            "low": rise.low,
            "high": rise.high,
            "p": rise.p,
            "best": grid.best(code) == variant,
        }
        for (variant, code), rise in grid.rises.items()
    ]


def layers(report: ModelReport, grid: Grid) -> tuple[Callable[[], "Figure"], Records] | None:
    """English-only ÷ multilingual loss of every linear; None where one is not measured."""
    pair = report.pair(grid)
    if pair is None:
        return None
    both: list[dict[str, dict[str, float]]] = [{}, {}]
    for losses, column in zip(both, pair, strict=True):
        for code in report.layer_languages:
            for linear, value in relative(report.model, column.variant, code).items():
                losses.setdefault(linear, {})[code] = value
    first, second = both
    if not first or first.keys() != second.keys():
        return None
    data = [
        {
            "linear": linear,
            "language": code,
            pair[0].label: value,
            pair[1].label: second[linear][code],
        }
        for linear, by in first.items()
        for code, value in by.items()
        if code in second[linear]
    ]
    return lambda: loss_heatmap(first, second), data


def outside(report: ModelReport) -> tuple[Callable[[], "Figure"], Records] | None:
    """Blocks × languages: activations outside what English and the most languages calibrated."""
    pair = next((found for grid in report.main if (found := report.pair(grid))), None)
    if pair is None:
        return None
    settings = [column.setting or "" for column in pair]
    if not all(setting in report.activations for setting in settings):
        return None
    shares: dict[tuple[str, str, int], list[float]] = {}
    for setting in settings:
        for code in report.layer_languages:
            for one in report.activations[setting].inputs(code):
                if one.outside is not None:
                    block = place(one.linears[0])[0]
                    shares.setdefault((setting, code, block), []).append(one.outside.share)
    means = {key: sum(values) / len(values) for key, values in shares.items()}
    data: Records = [
        {"setting": setting, "language": code, "block": block, "share": value}
        for (setting, code, block), value in means.items()
    ]
    return (lambda: _draw_outside(means, settings, report.layer_languages)), data


def _draw_outside(
    means: dict[tuple[str, str, int], float], settings: list[str], languages: list[str]
) -> "Figure":
    blocks = sorted({block for _, _, block in means})
    figure = new(2.4 + 2 * min(6.5, max(1.6, 0.2 * len(blocks))), 0.9 + 0.2 * len(languages))
    panels = list(figure.subplots(1, 2, sharey=True))
    for axes, setting in zip(panels, settings, strict=True):
        values = [
            [100 * means.get((setting, code, block), np.nan) for block in blocks]
            for code in languages
        ]
        image = axes.imshow(
            np.array(values),
            cmap=colour_map(sequential, 0),
            vmin=0,
            vmax=100 * max(means.values(), default=1.0),
            aspect="auto",
        )
        axes.set_title(f"calibrated with {setting}", fontsize=9)
        axes.set_xlabel("block")
        axes.set_yticks(range(len(languages)), [full_name(code) for code in languages])
        shown = range(0, len(blocks), max(1, -(-len(blocks) // 10)))
        axes.set_xticks(shown, [str(blocks[at]) for at in shown])
        axes.tick_params(length=2)
    figure.colorbar(image, ax=panels, label="% of activations outside", aspect=20, pad=0.01)
    return figure
