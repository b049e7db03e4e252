"""A report as Markdown."""

import re
from collections.abc import Sequence

from mlcalib.report.study.document import (
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
)  # fmt: skip
from mlcalib.report.tables import markdown as aligned


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the whole report; maps too fine for text are left to the page and the CSV files."""
    parts = [f"# {_plain(title)}", *(_block(section) for section in sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Section():
            heading = f"{'#' * block.level} {_plain(block.title)}"
            return _joined([heading, *map(_block, block.blocks)])
        case Paragraph(text, kind):
            return f"> {_plain(text)}" if kind in ("lead", "warning") else _plain(text)
        case Table():
            rows = [block.header, *block.rows, *block.foot]
            texts = [[_cell(cell) for cell in row] for row in rows]
            return f"{_plain(block.caption)}:\n\n{aligned(texts)}"
        case Plot(name, caption):
            return f"![{_plain(caption)}](figures/{name}.svg)"
        case Details(summary, blocks):
            return _joined([f"**{_plain(summary)}**", *map(_block, blocks)])
        case Beside(blocks):
            return _joined(list(map(_block, blocks)))
        case Map() | Scale():
            return ""


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
