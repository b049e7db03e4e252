"""Figures that a notebook shows by themselves, without pyplot and its state."""

import io
import re
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from mlcalib.common.optional import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(need: str, **options: Any) -> "Figure":
    """Return an empty figure; the last thing of a cell, it is shown, with ``%matplotlib`` or not.

    Args:
        need: what needs it, for the message.
        options: of ``matplotlib.figure.Figure``.

    Raises:
        ImportError: matplotlib is not installed; says how to install it.
    """
    figures = optional("matplotlib.figure", "notebook", need)
    figure: Figure = figures.Figure(**options)
    # IPython asks the object itself; notebooks take HTML, and what shows none takes the picture.
    figure._repr_html_ = partial(_svg, figure)  # type: ignore[method-assign]
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _svg(figure: "Figure") -> str:
    """Return SVG in the colours and fonts of the page that shows it, light or dark."""
    import matplotlib as mpl

    white = [axes for axes in figure.axes if axes.get_facecolor()[:3] == (1.0, 1.0, 1.0)]
    before = [axes.patch.get_visible() for axes in white]
    for axes in white:
        axes.patch.set_visible(False)
    file = io.StringIO()
    # Text stays text in the page's font, so that no glyph of matplotlib's own is missed.
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(file, format="svg", bbox_inches="tight", facecolor="none")
    for axes, visible in zip(white, before, strict=True):
        axes.patch.set_visible(visible)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("#000000", "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    style = 'fill="currentColor" style="max-width: 100%; height: auto"'
    return drawn.replace("<svg ", f"<svg {style} ", 1)


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()
