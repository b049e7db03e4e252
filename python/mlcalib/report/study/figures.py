"""Figures as SVG and PDF, with the data behind them."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcalib.optional import optional
from mlcalib.report.study.colours import CATEGORIES, NOTHING, diverging, ink, sequential
from mlcalib.report.study.comparison import Grid
from mlcalib.report.study.layers import relative
from mlcalib.report.study.prediction import correlation, pairs
from mlcalib.report.study.quality import by_languages, curve_panels, limit
from mlcalib.report.study.results import ModelReport, Point
from mlcalib.report.study.words import full_name, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = list[dict[str, Any]]
"""Rows of a CSV file: column → value."""
INK = "#010203"
"""Of text and axes; a page puts its own colour in its place."""
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Drawing:
    """A figure by the name of its files."""

    name: str
    draw: Callable[[], "Figure"]
    data: Records


@contextmanager
def style() -> Iterator[None]:
    """Draw and save within: same input, same bytes; text stays text; nothing global is left."""
    matplotlib = optional("matplotlib", "report", "A report")
    settings = {
        "svg.hashsalt": "mlcalib", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9,
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def svg(figure: "Figure") -> str:
    """Return the figure as SVG, with a transparent ground."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def pdf(figure: "Figure") -> bytes:
    """Return the figure as PDF."""
    file = io.BytesIO()
    figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()


def drawings(report: ModelReport, prefix: str) -> list[Drawing]:
    """Return the figures of a model."""
    found = []
    end = limit(report)
    for grid in report.main:
        found.append(Drawing(f"{prefix}rises-{grid.quantizer}", _heat(grid, end), _cells(grid)))
        if (layers := _layers(report, grid)) is not None:
            found.append(Drawing(f"{prefix}layers-{grid.quantizer}", *layers))
    for quantizer in dict.fromkeys(grid.quantizer for grid in report.grids):
        points = report.points(quantizer)
        if panels := curve_panels(points):
            found.append(
                Drawing(f"{prefix}curves-{quantizer}", _curves(points, panels), _points(points))
            )
    if (scatter := _scatter(report)) is not None:
        found.append(Drawing(f"{prefix}predicted", *scatter))
    if (outside := _outside(report)) is not None:
        found.append(Drawing(f"{prefix}outside", *outside))
    return found


def _new(width: float, height: float) -> "Figure":
    figures = optional("matplotlib.figure", "report", "A report")
    figure: Figure = figures.Figure(figsize=(width, height), layout="constrained")
    return figure


def _map(scale: Callable[[float], str], low: float) -> Any:
    colors = optional("matplotlib.colors", "report", "A report")
    steps = [scale(share) for share in np.linspace(low, 1, 255)]
    chosen = colors.ListedColormap(steps)
    chosen.set_bad(NOTHING)
    return chosen


def _heat(grid: Grid, end: float) -> Callable[[], "Figure"]:
    def draw() -> "Figure":
        columns, languages = [*grid.references, *grid.columns], grid.measured.languages
        values = np.full((len(languages), len(columns)), np.nan)
        for row, code in enumerate(languages):
            for at, column in enumerate(columns):
                if (rise := grid.rises.get((column.variant, code))) is not None:
                    values[row, at] = rise.value
        figure = _new(2.9 + 0.72 * len(columns), 1.0 + 0.27 * len(languages))
        axes = figure.subplots()
        image = axes.imshow(values, cmap=_map(diverging, -1), vmin=-end, vmax=end, aspect="auto")
        for row, code in enumerate(languages):
            for at, column in enumerate(columns):
                _write(axes, grid, column.variant, code, (at, row), end)
        axes.set_yticks(range(len(languages)), [full_name(code) for code in languages])
        labels = [column.label.replace(", ", ",\n") for column in columns]
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
        axes.text(*at, "–", ha="center", va="center")
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


def _cells(grid: Grid) -> Records:
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


def _curves(points: list[Point], panels: list[str]) -> Callable[[], "Figure"]:
    def draw() -> "Figure":
        figure = _new(3.6 * len(panels) + 0.4, 3.1)
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            lines = _lines(points, panel)
            for at, (label, line) in enumerate(lines.items()):
                _line(axes, panel, label, line, at)
            axes.set_ylabel("rise of token loss (nats)")
            axes.legend(fontsize=7, frameon=False)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        return figure

    return draw


def _lines(points: list[Point], panel: str) -> dict[str, list[Point]]:
    if panel == "languages":
        return {f"{tokens:,} tokens": each for tokens, each in by_languages(points).items()}
    sets = dict.fromkeys(point.set_name for point in points)
    lines = {name: [point for point in points if point.set_name == name] for name in sets}
    return {name: line for name, line in lines.items() if len(line) > 1}


def _line(axes: "Axes", panel: str, label: str, line: list[Point], at: int) -> None:
    colour, marker = CATEGORIES[at % len(CATEGORIES)], MARKERS[at % len(MARKERS)]
    across = {
        "tokens": lambda point: point.tokens,
        "languages": lambda point: point.languages,
        "seconds": lambda point: point.seconds,
    }[panel]
    x = [across(point) for point in line]
    joined = sorted(set(x))
    for how, value in (("-", lambda p: p.mean.value), ("--", lambda p: p.worst[1].value)):
        y = [np.mean([value(p) for p in line if across(p) == here]) for here in joined]
        axes.plot(joined, y, how, color=colour, lw=1.4, label=label if how == "-" else None)
        axes.plot(x, [value(p) for p in line], marker, color=colour, ms=4, ls="none")
    for point in line:
        if point.mean.low is not None and point.mean.high is not None:
            axes.plot([across(point)] * 2, [point.mean.low, point.mean.high], color=colour, lw=1)
    labels = {
        "tokens": "calibration tokens of the setting",
        "languages": "languages at a fixed number of tokens",
        "seconds": "calibration pass alone, seconds (estimated)",
    }
    axes.set_xlabel(labels[panel])
    axes.set_xscale("linear" if panel == "languages" else "log")


def _points(points: list[Point]) -> Records:
    return [
        {
            "setting": point.setting,
            "set": point.set_name,
            "tokens": point.tokens,
            "languages": point.languages,
            "mean_rise": point.mean.value,
            "low": point.mean.low,
            "high": point.mean.high,
            "worst_language": point.worst[0],
            "worst_rise": point.worst[1].value,
            "seconds": point.seconds,
        }
        for point in points
    ]


def _scatter(report: ModelReport) -> tuple[Callable[[], "Figure"], Records] | None:
    quantizers = dict.fromkeys(grid.quantizer for grid in report.grids)
    found = {name: each for name in quantizers if len(each := pairs(report, name)) > 1}
    if not found:
        return None

    def draw() -> "Figure":
        figure = _new(3.9 * len(found) + 1.6, 3.5)
        panels = np.atleast_1d(figure.subplots(1, len(found)))
        for axes, (name, each) in zip(panels, found.items(), strict=True):
            for at, code in enumerate(report.measured.languages):
                mine = [pair for pair in each if pair.language == code]
                axes.plot(
                    [pair.predicted for pair in mine],
                    [pair.rise for pair in mine],
                    MARKERS[at % len(MARKERS)],
                    color=CATEGORIES[at % len(CATEGORIES)],
                    ms=4,
                    alpha=0.85,
                    label=full_name(code),
                )
            rho = correlation(each)
            shown = "no rank correlation" if rho is None else f"ρ = {signed(rho, 2)}"
            axes.set_title(f"{name}: {shown}, n = {len(each)}", fontsize=9)
            axes.set_xlabel("predicted loss (Σ loss ÷ power)")
            axes.set_ylabel("measured rise of token loss (nats)")
        panels[-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    data = [
        {
            "quantizer": name,
            "variant": pair.column.variant,
            "language": pair.language,
            "predicted": pair.predicted,
            "rise": pair.rise,
        }
        for name, each in found.items()
        for pair in each
    ]
    return draw, data


def _layers(report: ModelReport, grid: Grid) -> tuple[Callable[[], "Figure"], Records] | None:
    from mlcalib.report.plots import loss_heatmap

    pair = report.pair(grid)
    if pair is None:
        return None
    both: list[dict[str, dict[str, float]]] = [{}, {}]
    for losses, column in zip(both, pair, strict=True):
        for code in report.measured.languages:
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


def _outside(report: ModelReport) -> tuple[Callable[[], "Figure"], Records] | None:
    columns: Sequence[Any] = next((each for grid in report.main if (each := report.pair(grid))), ())
    known = [report.activations.get(column.setting) for column in columns]
    if not known or None in known:
        return None
    from mlcalib.report.study.layers import place

    shares: dict[tuple[str, str, int], list[float]] = {}
    for each in known:
        for code in report.measured.languages:
            for one in each.inputs(code) if each else ():
                if one.outside is not None and each is not None:
                    block = place(one.linears[0])[0]
                    shares.setdefault((each.setting, code, block), []).append(one.outside.share)
    means = {key: sum(values) / len(values) for key, values in shares.items()}
    if not means:
        return None
    blocks = sorted({block for _, _, block in means})
    languages = report.measured.languages

    def draw() -> "Figure":
        figure = _new(2.4 + 2 * min(6.5, max(1.6, 0.2 * len(blocks))), 0.9 + 0.2 * len(languages))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, column in zip(panels, columns, strict=True):
            values = [
                [means.get((column.setting, code, block), np.nan) for block in blocks]
                for code in languages
            ]
            image = axes.imshow(
                100 * np.array(values),
                cmap=_map(sequential, 0),
                vmin=0,
                vmax=100 * max(means.values()),
                aspect="auto",
            )
            axes.set_title(f"outside {column.label}", fontsize=9)
            axes.set_xlabel("block")
            axes.set_yticks(range(len(languages)), [full_name(code) for code in languages])
            shown = range(0, len(blocks), max(1, -(-len(blocks) // 10)))
            axes.set_xticks(shown, [str(blocks[at]) for at in shown])
            axes.tick_params(length=2)
        figure.colorbar(image, ax=list(panels), label="% of activations", aspect=20, pad=0.01)
        return figure

    data = [
        {"setting": setting, "language": code, "block": block, "share": value}
        for (setting, code, block), value in means.items()
    ]
    return draw, data
