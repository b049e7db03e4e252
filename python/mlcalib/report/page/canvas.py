"""What all figures share: style, sizes, colours, and how they become SVG and PDF."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcalib.common.optional import optional
from mlcalib.report.page.colours import NOTHING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = list[dict[str, Any]]
"""Rows of a CSV file: column → value."""
INK = "#010203"
"""Of text and axes; a page puts its own colour in its place."""
_INKED = (
    "text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color",
    "ytick.color",
)  # fmt: skip


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
        **dict.fromkeys(_INKED, INK),
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


def new(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches."""
    figures = optional("matplotlib.figure", "report", "A report")
    figure: Figure = figures.Figure(figsize=(width, height), layout="constrained")
    return figure


def colour_map(scale: Callable[[float], str], low: float) -> Any:
    """Return a colour scale, from ``low`` to 1, as matplotlib wants it."""
    colors = optional("matplotlib.colors", "report", "A report")
    steps = [scale(share) for share in np.linspace(low, 1, 255)]
    return colors.ListedColormap(steps).with_extremes(bad=NOTHING)
