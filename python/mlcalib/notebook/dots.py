"""Scores as dots: languages across, one colour for each model, with standard errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlcalib.notebook.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, tuple[float, float]]]
"""Model → language → value and standard error, or 0. All panels of a plot have the same models."""

# Okabe and Ito's colours, which colour-blind people tell apart; shapes differ, too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c")
_SHAPES = "osD^vP*X"
_WIDE = 10  # largest over smallest value, from which on the axis is logarithmic


def dot_plot(panels: Mapping[str, Scores], what: str) -> "Figure":
    """Draw the scores of models in languages.

    Args:
        panels: title → scores; a panel for each, one below the other.
        what: label of the values. Their axis is logarithmic where they span more than a decade.

    Raises:
        ImportError: matplotlib is not installed.
    """
    most = max(len(_languages(scores)) for scores in panels.values())
    figure = new_figure(
        "A plot of scores",
        figsize=(min(max(0.7 * most + 3, 5), 16), 3.2 * len(panels)),
        layout="constrained",
    )
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for each, (title, scores) in zip(axes, panels.items(), strict=True):
        _draw(each, scores)
        each.set_title(title, fontsize=9)
        each.set_ylabel(what, fontsize=9)
    drawn = axes[0].get_legend_handles_labels()
    figure.legend(*drawn, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _draw(axes: "Axes", scores: Scores) -> None:
    languages = _languages(scores)
    places = {code: at for at, code in enumerate(languages)}
    for number, (model, by_language) in enumerate(scores.items()):
        beside = 0.5 * ((number + 0.5) / len(scores) - 0.5)
        axes.errorbar(
            [places[code] + beside for code in by_language],
            [value for value, _ in by_language.values()],
            yerr=[error for _, error in by_language.values()],
            fmt=_SHAPES[number % len(_SHAPES)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=4,
            capsize=2,
            label=model,
        )
    axes.set_xticks(range(len(languages)), languages, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.3)
    values = [value for by in scores.values() for value, _ in by.values()]
    if min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_yscale("log")


def _languages(scores: Scores) -> list[str]:
    return list(dict.fromkeys(code for by_language in scores.values() for code in by_language))
