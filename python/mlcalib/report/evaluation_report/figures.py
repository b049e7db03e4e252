"""Figures for a paper: relative changes with their intervals."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mlcalib.report.comparison.relative_changes import Changes, Model
from mlcalib.report.evaluation_report.compared import Compared
from mlcalib.report.page.canvas import INK, Drawing, Records, new
from mlcalib.report.page.colours import CATEGORIES
from mlcalib.report.page.words import full_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*"


def drawing(name: str, compared: Compared, found: Mapping[Model, Changes]) -> Drawing:
    """Return languages down, a dot with its interval for each model."""
    return Drawing(name, _dots(compared, found), _records(compared, found))


def _dots(compared: Compared, found: Mapping[Model, Changes]) -> "Callable[[], Figure]":
    def draw() -> "Figure":
        codes = list(next(iter(found.values())).averages)
        figure = new(6.8, 1.0 + len(codes) * max(0.24, 0.11 * len(found)))
        axes = figure.subplots()
        for number, (model, changes) in enumerate(found.items()):
            shift = 0.7 * ((number + 0.5) / len(found) - 0.5)
            colour = CATEGORIES[number % len(CATEGORIES)]
            for row, code in enumerate(codes):
                change = changes.averages[code]
                if change.value is None:
                    continue
                at = row + shift
                if change.low is not None and change.high is not None:
                    axes.plot([change.low, change.high], [at, at], color=colour, lw=1.3)
                axes.plot(
                    [change.value],
                    [at],
                    marker=_MARKERS[number % len(_MARKERS)],
                    markersize=5,
                    color=colour,
                    markerfacecolor=colour if change.significant else "white",
                    linestyle="none",
                )
            axes.plot(
                [], [], marker=_MARKERS[number % len(_MARKERS)], color=colour,
                label=compared.labels[model],
            )  # fmt: skip
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(range(len(codes)), [full_name(code) for code in codes])
        axes.set_ylim(len(codes) - 0.5, -0.5)
        axes.set_xlabel("relative change, % (below 0 is worse; hollow: not significant)")
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
        return figure

    return draw


def _records(compared: Compared, found: Mapping[Model, Changes]) -> Records:
    return [
        {
            "model": compared.labels[model],
            "language": code,
            "change": change.value,
            "low": change.low,
            "high": change.high,
            "p_holm": change.p_float,
            "tasks": change.tasks,
        }
        for model, changes in found.items()
        for code, change in changes.averages.items()
    ]
