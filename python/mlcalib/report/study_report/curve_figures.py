"""Figures of curves and points."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mlcalib.common.optional import optional
from mlcalib.report.page.canvas import Records, new
from mlcalib.report.page.colours import CATEGORIES
from mlcalib.report.page.words import full_name, signed
from mlcalib.report.study_report.prediction import correlation, pairs
from mlcalib.report.study_report.quality import by_languages
from mlcalib.report.study_report.results import ModelReport, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX"
"""Their number shares no divisor with that of the colours, so that no pair comes back soon."""


def curves(points: list[Point], panels: list[str]) -> Callable[[], "Figure"]:
    """Calibration sizes against the rise, a panel for each of ``curve_panels``."""

    def draw() -> "Figure":
        figure = new(3.6 * len(panels) + 0.4, 3.1)
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            lines = _lines(points, panel)
            for at, (label, line) in enumerate(lines.items()):
                _line(axes, panel, label, line, at)
            axes.set_ylabel("rise of token loss (nats)\nsolid: mean, dashed: worst language")
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

    def across(point: Point) -> float:
        found = {"tokens": point.tokens, "languages": point.languages, "seconds": point.seconds}
        return float(found[panel] or 0)

    x = [across(point) for point in line]
    joined = sorted(set(x))
    for how, values in (
        ("-", [point.mean.value for point in line]),
        ("--", [point.worst[1].value for point in line]),
    ):
        means = [
            float(np.mean([value for at, value in zip(x, values, strict=True) if at == here]))
            for here in joined
        ]
        axes.plot(joined, means, how, color=colour, lw=1.4, label=label if how == "-" else None)
        axes.plot(x, values, marker, color=colour, ms=4, ls="none")
    for point in line:
        if point.mean.low is not None and point.mean.high is not None:
            axes.plot([across(point)] * 2, [point.mean.low, point.mean.high], color=colour, lw=1)
    labels = {
        "tokens": "calibration tokens of the setting",
        "languages": "languages at a fixed number of tokens",
        "seconds": "calibration pass alone, seconds (estimated)",
    }
    axes.set_xlabel(labels[panel])
    if panel == "languages":
        axes.set_xticks(joined)
        return
    axes.set_xscale("log")
    ticker = optional("matplotlib.ticker", "report", "A report")
    axes.set_xticks(joined, [f"{each:,.0f}" for each in joined], rotation=30, ha="right")
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def point_records(points: list[Point]) -> Records:
    """Return the data behind ``curves``."""
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


def scatter(report: ModelReport) -> tuple[Callable[[], "Figure"], Records] | None:
    """Predicted loss against measured rise; None where nothing has both."""
    quantizers = dict.fromkeys(grid.quantizer for grid in report.grids)
    found = {name: each for name in quantizers if len(each := pairs(report, name)) > 1}
    if not found:
        return None

    def draw() -> "Figure":
        figure = new(3.9 * len(found) + 1.6, 3.5)
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
            shown = "no rank correlation" if rho is None else f"rank correlation {signed(rho, 2)}"
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
