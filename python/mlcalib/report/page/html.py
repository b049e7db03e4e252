"""A report as one HTML page that needs nothing else."""

import html
import re
from collections.abc import Callable, Sequence
from importlib.resources import files

from mlcalib.report.page.colours import ink
from mlcalib.report.page.document import (
    Beside,
    Block,
    Cell,
    Details,
    Map,
    Paragraph,
    Plot,
    Row,
    Scale,
    Section,
    Table,
)

Figures = Callable[[str], str]
"""Name of a figure → its SVG."""


def render(title: str, sections: Sequence[Section], figures: Figures) -> str:
    """Return the whole page."""
    style = files("mlcalib.report.page").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(_block(section, figures) for section in sections)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(_plain(title))}</title>\n<style>\n{style}</style></head>\n<body>\n"
        f"<header><h1>{_text(title)}</h1>{_contents(sections)}</header>\n"
        f"<main>\n{body}\n</main>\n</body></html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    links = []
    for section in sections:
        links.append(f'<a href="#{_id(section.anchor)}">{_text(section.title)}</a>')
        links += [
            f'<a class="sub" href="#{_id(each.anchor)}">{_text(each.title)}</a>'
            for each in section.blocks
            if isinstance(each, Section)
        ]
    return f"<nav>{' '.join(links)}</nav>"


def _block(block: Block, figures: Figures) -> str:
    match block:
        case Section() | Beside() | Details():
            return _holder(block, "\n".join(_block(each, figures) for each in block.blocks))
        case Plot():
            return _plot(block, figures)
        case Table():
            return _table(block)
        case Map():
            return _map(block)
        case _:
            return _words(block)


def _holder(block: Section | Beside | Details, inner: str) -> str:
    match block:
        case Section(anchor, title, _, level):
            heading = f"<h{level}>{_text(title)}</h{level}>"
            return f'<section id="{_id(anchor)}">{heading}\n{inner}</section>'
        case Details(summary):
            return f"<details><summary>{_text(summary)}</summary>{inner}</details>"
        case Beside():
            return f'<div class="beside">{inner}</div>'


def _words(block: Paragraph | Scale) -> str:
    if isinstance(block, Paragraph):
        return f'<p class="{block.kind}">{_text(block.text)}</p>'
    boxes = "".join(
        f'<span style="background:{colour};color:{ink(colour)}">{_text(text)}</span>'
        for colour, text in block.steps
    )
    return f'<div class="scale">{boxes}<small>{_text(block.title)}</small></div>'


def _plot(plot: Plot, figures: Figures) -> str:
    name = html.escape(plot.name)
    links = " ".join(
        f'<a href="figures/{name}.{kind}">{kind}</a>' for kind in ("svg", "pdf", "csv")
    )
    return (
        f'<figure><div class="scroll">{figures(plot.name)}</div>'
        f"<figcaption>{_text(plot.caption)} {links}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    header = "".join(map(_column, table.header))
    body = "".join(map(_row, table.rows))
    foot = f"<tfoot>{''.join(map(_row, table.foot))}</tfoot>" if table.foot else ""
    kind = ' class="heat"' if table.heat else ""
    return (
        f'<div class="scroll"><table{kind}><caption>{_text(table.caption)}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody>{foot}</table></div>"
    )


def _column(cell: Cell | str) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    side = ' class="plain"' if cell.plain else ""
    return f'<th scope="col"{side}>{_text(cell.text, isolate=True)}</th>'


def _row(row: Row) -> str:
    return f"<tr>{''.join(map(_cell, row))}</tr>"


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    marks = ("best", "grey", "plain")
    names = " ".join(name for name in marks if getattr(cell, name))
    attributes = f' class="{names}"' if names else ""
    if cell.colour:
        attributes += f' style="background:{cell.colour};color:{ink(cell.colour)}"'
    if cell.title:
        attributes += f' title="{html.escape(_plain(cell.title))}"'
    note = f"<small>{_text(cell.note)}</small>" if cell.note else ""
    inner = _text(cell.text, isolate=cell.head) + note
    return (
        f'<th scope="row"{attributes}>{inner}</th>'
        if cell.head
        else f"<td{attributes}>{inner}</td>"
    )


def _map(given: Map) -> str:
    """Draw a grid of coloured boxes; the page's own colour of text serves in the dark too."""
    side = max(13, min(24, 420 // max(1, len(given.columns))))
    height, left, top = 15, 7 * max(map(len, given.rows), default=0) + 8, 4
    width = left + side * len(given.columns) + 4
    bottom = top + height * len(given.rows)
    parts = [
        f'<text x="{left - 5}" y="{top + height * at + 11}" text-anchor="end">'
        f"{html.escape(label)}</text>"
        for at, label in enumerate(given.rows)
    ]
    every = max(1, -(-len(given.columns) // 10))
    parts += [
        f'<text x="{left + side * at + side // 2}" y="{bottom + 13}" text-anchor="middle">'
        f"{html.escape(label)}</text>"
        for at, label in enumerate(given.columns)
        if at % every == 0
    ]
    for row, (colours, titles) in enumerate(zip(given.colours, given.titles, strict=True)):
        parts += [
            f'<rect x="{left + side * at}" y="{top + height * row}" width="{side - 1}" '
            f'height="{height - 1}" fill="{colour}"><title>{html.escape(title)}</title></rect>'
            for at, (colour, title) in enumerate(zip(colours, titles, strict=True))
        ]
    axis = (
        f'<text x="{left - 5}" y="{bottom + 13}" text-anchor="end">{html.escape(given.axis)}</text>'
    )
    return (
        f'<figure class="map"><figcaption>{_text(given.title)}</figcaption>'
        f'<svg width="{width}" height="{bottom + 18}" role="img">{"".join(parts)}{axis}</svg>'
        "</figure>"
    )


def _text(text: str, *, isolate: bool = False) -> str:
    """Escape, then turn `code`, **strong** and ⟨names⟩ into elements."""
    escaped = html.escape(text)
    escaped = re.sub(r"`([^`]*)`", r"<code><bdi>\1</bdi></code>", escaped)
    escaped = re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", escaped)
    escaped = re.sub(r"⟨([^⟩]*)⟩", r"<bdi>\1</bdi>", escaped)
    return f"<bdi>{escaped}</bdi>" if isolate else escaped


def _plain(text: str) -> str:
    return re.sub(r"[⟨⟩`]|\*\*", "", text)


def _id(anchor: str) -> str:
    return re.sub(r"[^\w-]", "-", anchor)
