"""A report as one HTML page, Markdown, CSV tables, and figures as SVG, PDF and CSV."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcalib.common.files import atomic_file, atomic_path
from mlcalib.common.optional import optional
from mlcalib.report.page.canvas import INK, Drawing, Records, pdf, svg
from mlcalib.report.page.document import Section
from mlcalib.report.page.html import render as html
from mlcalib.report.page.markdown import render as markdown


def check_page(page: Path) -> None:
    """Make sure that a report can be made, before it is.

    Raises:
        ImportError: pandas is not installed.
        ValueError: the name of the page does not end in ``.html``.
    """
    if page.suffix != ".html":
        raise ValueError(f"The report goes to {page}; expected a name that ends in .html.")
    optional("pandas", "report", "A report")


def write_figures(drawings: Sequence[Drawing], folder: Path) -> dict[str, str]:
    """Write figures and the data behind them; return name → SVG. Call it within ``style``."""
    written = {}
    for drawing in drawings:
        figure = drawing.draw()
        written[drawing.name] = svg(figure)
        with atomic_file(folder / f"{drawing.name}.svg") as file:
            file.write(written[drawing.name])
        with atomic_path(folder / f"{drawing.name}.pdf") as partial:
            partial.write_bytes(pdf(figure))
        _csv(folder / f"{drawing.name}.csv", drawing.data)
    return written


def write_page(
    page: Path,
    title: str,
    sections: Sequence[Section],
    tables: Mapping[str, Records],
    figures: Mapping[str, str],
) -> None:
    """Write the page, the same with ``.md``, and the tables into the folder ``tables`` beside.

    Args:
        page: the HTML file.
        title: of the report.
        sections: all that it says.
        tables: name → rows.
        figures: what ``write_figures`` returned.
    """
    for name, rows in tables.items():
        _csv(page.parent / "tables" / f"{name}.csv", rows)
    with atomic_file(page.with_suffix(".md")) as file:
        file.write(markdown(title, sections))
    with atomic_file(page) as file:
        file.write(html(title, sections, lambda name: inline(figures[name], name)))


def inline(drawn: str, name: str) -> str:
    """Return an SVG for use inside a page: in its colours, its ids apart from other figures'."""
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawn)
    drawn = re.sub(r'(href="|url\()#', rf"\1#{name}-", drawn)
    return re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)


def _csv(path: Path, rows: Records) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    with atomic_file(path) as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
