"""A report as Markdown."""

import re
from collections.abc import Sequence

from mlcalib.report.page.document import (
    Beside,
    Block,
    Cell,
    Details,
    Map,
    Paragraph,
    Plot,
    Scale,
    Section,
    Table,
)
from mlcalib.report.tables.perplexity import markdown as aligned


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the whole report; maps too fine for text are left to the page and the CSV files."""
    parts = [f"# {_plain(title)}", *(_block(section) for section in sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Section() | Beside() | Details():
            return _joined([_heading(block), *map(_block, block.blocks)])
        case Table():
            rows = [block.header, *block.rows, *block.foot]
            texts = [[_cell(cell) for cell in row] for row in rows]
            return f"{_plain(block.caption)}:\n\n{aligned(texts)}"
        case Map() | Scale():
            return ""
        case _:
            return _words(block)


def _heading(block: Section | Beside | Details) -> str:
    match block:
        case Section():
            return f"{'#' * block.level} {_plain(block.title)}"
        case Details():
            return f"**{_plain(block.summary)}**"
        case Beside():
            return ""


def _words(block: Paragraph | Plot) -> str:
    if isinstance(block, Plot):
        return f"![{_plain(block.caption)}](figures/{block.name}.svg)"
    quoted = block.kind in ("lead", "warning")
    return f"> {_plain(block.text)}" if quoted else _plain(block.text)


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return _plain(cell).replace("|", r"\|")
    text = f"{cell.text} ({cell.note})" if cell.note else cell.text
    text = _plain(text).replace("|", r"\|")
    if cell.best:
        return f"**{text}**"
    return f"*{text}*" if cell.grey else text


def _plain(text: str) -> str:
    return re.sub("[⟨⟩]", "", text)
