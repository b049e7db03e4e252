"""A report as one HTML page that needs nothing else; its templates lie beside this file."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment
from markupsafe import Markup, escape

from mlcalib.common.templates import environment
from mlcalib.report.page.colours import ink
from mlcalib.report.page.document import Cell, Map, Section

Figures = Callable[[str], str]
"""Name of a figure → its SVG."""

_PACKAGE = "mlcalib.report.page"
_MARKS = ("best", "grey", "plain")  # of a cell, in the style sheet too


def render(title: str, sections: Sequence[Section], figures: Figures) -> str:
    """Return the whole page."""
    style = files(_PACKAGE).joinpath("page.css").read_text(encoding="utf-8")
    page = _environment().get_template("page.html")
    return page.render(title=title, sections=sections, figures=figures, style=style)


@cache
def _environment() -> Environment:
    return environment(
        _PACKAGE,
        {
            "cells": lambda row: [Cell(each) if isinstance(each, str) else each for each in row],
            "id": lambda anchor: re.sub(r"[^\w-]", "-", anchor),
            "ink": ink,
            "kind": lambda block: type(block).__name__,
            "layout": _layout,
            "marked": _marked,
            "marks": lambda cell: [name for name in _MARKS if getattr(cell, name)],
            "plain": lambda text: re.sub(r"[⟨⟩`]|\*\*", "", text),
        },
    )


def _marked(text: str) -> Markup:
    """Escape, then turn `code`, **strong** and ⟨names⟩ into elements."""
    escaped = str(escape(text))
    escaped = re.sub(r"`([^`]*)`", r"<code><bdi>\1</bdi></code>", escaped)
    escaped = re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", escaped)
    escaped = re.sub(r"⟨([^⟩]*)⟩", r"<bdi>\1</bdi>", escaped)
    return Markup(escaped)


def _layout(given: Map) -> dict[str, int]:
    """Return where a map's grid lies and how large its boxes are, in pixels."""
    columns, rows = len(given.columns), len(given.rows)
    side = max(13, min(24, 420 // max(1, columns)))
    height, left, top = 15, 7 * max(map(len, given.rows), default=0) + 8, 4
    return {
        "side": side,
        "height": height,
        "left": left,
        "top": top,
        "width": left + side * columns + 4,
        "bottom": top + height * rows,
        "every": max(1, -(-columns // 10)),  # of the columns has a label
    }
