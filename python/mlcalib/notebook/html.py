"""HTML by which objects show themselves in a notebook: no script, and no style sheet.

Colours are those of the page around it, so that it reads on light and on dark pages. All text is
escaped.
"""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

Cell = str | Markup
"""Text, which is escaped, or HTML that was made here."""

_LEFT = "text-align:left;padding:1px 8px"
_RIGHT = "text-align:right;padding:1px 8px;white-space:nowrap"


def page(*parts: Markup) -> str:
    """Return what ``_repr_html_`` returns."""
    return str(Markup("<div>{}</div>").format(Markup().join(parts)))


def heading(text: str) -> Markup:
    """Return a line of strong text."""
    return Markup("<div><strong>{}</strong></div>").format(text)


def paragraph(text: Cell) -> Markup:
    """Return a line of text; line breaks are kept."""
    return Markup('<div style="white-space:pre-wrap">{}</div>').format(text)


def strong(text: str) -> Markup:
    """Return text that stands out."""
    return Markup("<strong>{}</strong>").format(text)


def bar(share: float, text: str = "") -> Markup:
    """Return a bar of 0 to 1 of its full length, with a text behind it."""
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        '<span style="display:inline-block;width:8em;text-align:left"><span style="display:'
        'inline-block;height:0.7em;width:{}%;background:currentColor;opacity:0.4"></span></span>{}'
    ).format(f"{width:.1f}", text)


def table(header: Sequence[Cell], rows: Iterable[Sequence[Cell]], texts: int = 1) -> Markup:
    """Return a table.

    Args:
        header: of the columns.
        rows: cells; each row as long as the header.
        texts: how many columns, from the left, hold text. The others hold numbers, and are aligned
            to the right.
    """
    lines = [_row("th", header, texts), *(_row("td", row, texts) for row in rows)]
    return Markup('<table style="border-collapse:collapse;margin:4px 0">{}</table>').format(
        Markup().join(lines)
    )


def listing(lines: Iterable[str], word: str = "") -> Markup:
    """Return lines of text one below the other, each after a strong word; nothing for no lines."""
    mark = Markup("<strong>{}:</strong> ").format(word) if word else Markup()
    return Markup().join(paragraph(mark + line) for line in lines)


def folded(title: str, content: Markup, *, opened: bool) -> Markup:
    """Return content that a click on its title shows or hides."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(
        Markup(" open" if opened else ""), title, content
    )


def _row(element: str, cells: Sequence[Cell], texts: int) -> Markup:
    found = (
        Markup('<{0} style="{1}">{2}</{0}>').format(
            Markup(element), _LEFT if at < texts else _RIGHT, cell
        )
        for at, cell in enumerate(cells)
    )
    return Markup("<tr>{}</tr>").format(Markup().join(found))
