"""Figures that a notebook shows by themselves, without pyplot and its state."""

import io
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
    # IPython asks the object itself where no backend has told it how to draw figures.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()
