"""The report of a study: one page, the tables behind it, figures for a paper."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcalib.files import atomic_file, atomic_path
from mlcalib.optional import optional
from mlcalib.report.study.answer import answer
from mlcalib.report.study.canvas import INK, pdf, style, svg
from mlcalib.report.study.costs import cost
from mlcalib.report.study.document import Section
from mlcalib.report.study.figures import drawings
from mlcalib.report.study.html import render as html
from mlcalib.report.study.markdown import render as markdown
from mlcalib.report.study.prediction import prediction
from mlcalib.report.study.quality import curves, heat_maps
from mlcalib.report.study.ranges import ranges
from mlcalib.report.study.results import ModelReport, Results, results
from mlcalib.report.study.tables import tables
from mlcalib.report.study.tasks import tasks
from mlcalib.report.study.tracing import layer_losses


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> Path:
    """Write the report of a study: a page, Markdown, tables as CSV, figures as SVG and PDF.

    The study may be unfinished; the report says what is missing. Same study, same bytes.

    Args:
        folder: what ``mlcalib study`` wrote.
        out: the HTML file; the same name with ``.md``, and the folders ``tables`` and ``figures``
            are written beside it. Default: ``report/report.html`` in the study's folder.
        resamples: of the bootstrap behind every interval. Default: 10,000, or more where a study
            has more than 100 cells.
        seed: of the bootstrap.

    Returns:
        The HTML file.

    Raises:
        FileNotFoundError: there is no study in the folder.
        ImportError: matplotlib or pandas is not installed.
        ValueError: a damaged file, which is named; ``out`` that does not end in ``.html``.
    """
    page = Path(folder) / "report" / "report.html" if out is None else Path(out)
    if page.suffix != ".html":
        raise ValueError(f"The report goes to {page}; expected a name that ends in .html.")
    optional("pandas", "report", "A report")  # before anything is written
    with style():
        found = results(folder, resamples=resamples, seed=seed)
        figures = _figures(found, page.parent / "figures")
    for name, rows in tables(found).items():
        _csv(page.parent / "tables" / f"{name}.csv", rows)
    title = f"Study ⟨{found.study.plan.name}⟩"
    parts = sections(found)
    with atomic_file(page.with_suffix(".md")) as file:
        file.write(markdown(title, parts))
    with atomic_file(page) as file:
        file.write(html(title, parts, lambda name: _inline(figures[name], name)))
    return page


def sections(found: Results) -> list[Section]:
    """Return all that the report says, in its order."""
    parts = [answer(found)]
    for report in found.models:
        prefix = _prefix(found, report)
        inner = [
            heat_maps(report, prefix),
            curves(report, prefix),
            tasks(found, report, prefix),
            prediction(report, prefix),
            layer_losses(report, prefix),
            ranges(report, prefix),
            cost(report, prefix),
        ]
        present = [each for each in inner if each is not None]
        if len(found.models) == 1:
            parts += present
        else:
            lower = [Section(each.anchor, each.title, each.blocks, 3) for each in present]
            parts.append(Section(f"{prefix}model", f"Model {report.model.slug}", [*lower]))
    return parts


def _prefix(found: Results, report: ModelReport) -> str:
    """Tell anchors and files of several models apart."""
    return "" if len(found.models) == 1 else f"{report.model.slug}-"


def _figures(found: Results, folder: Path) -> dict[str, str]:
    written = {}
    for report in found.models:
        for drawing in drawings(report, _prefix(found, report)):
            figure = drawing.draw()
            written[drawing.name] = svg(figure)
            with atomic_file(folder / f"{drawing.name}.svg") as file:
                file.write(written[drawing.name])
            with atomic_path(folder / f"{drawing.name}.pdf") as partial:
                partial.write_bytes(pdf(figure))
            _csv(folder / f"{drawing.name}.csv", drawing.data)
    return written


def _inline(drawn: str, name: str) -> str:
    """Return an SVG for use inside a page: in its colours, its ids apart from other figures'."""
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawn)
    drawn = re.sub(r'(href="|url\()#', rf"\1#{name}-", drawn)
    return re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)


def _csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    with atomic_file(path) as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
