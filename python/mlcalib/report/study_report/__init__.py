"""The report of a study: one page, the tables behind it, figures for a paper."""

from pathlib import Path

from mlcalib.report.page import check_page, write_figures, write_page
from mlcalib.report.page.canvas import Drawing, style
from mlcalib.report.page.document import Section
from mlcalib.report.study_report import sizes
from mlcalib.report.study_report.answer import answer
from mlcalib.report.study_report.clipping import clipping
from mlcalib.report.study_report.costs import cost
from mlcalib.report.study_report.figures import drawings
from mlcalib.report.study_report.prediction import prediction
from mlcalib.report.study_report.quality import curves, heat_maps
from mlcalib.report.study_report.ranges import ranges
from mlcalib.report.study_report.results import ModelReport, Results, results
from mlcalib.report.study_report.tables import tables
from mlcalib.report.study_report.tasks import fidelities, perplexities, tasks
from mlcalib.report.study_report.tracing import layer_losses


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
    check_page(page)
    with style():
        found = results(folder, resamples=resamples, seed=seed)
        figures = write_figures(all_drawings(found), page.parent / "figures")
    title = f"Study ⟨{found.study.plan.name}⟩"
    write_page(page, title, sections(found), tables(found), figures)
    return page


def all_drawings(found: Results) -> list[Drawing]:
    """Return the figures of all models. Call it, and draw them, within ``style``."""
    return [each for report in found.models for each in drawings(report, _prefix(found, report))]


def sections(found: Results) -> list[Section]:
    """Return all that the report says, in its order."""
    parts = [answer(found)]
    for report in found.models:
        prefix = _prefix(found, report)
        inner = [
            heat_maps(report, prefix),
            sizes.section(report, prefix),
            curves(report, prefix),
            perplexities(report, prefix),
            tasks(found, report, prefix),
            fidelities(report, prefix),
            prediction(report, prefix),
            layer_losses(report, prefix),
            ranges(report, prefix),
            clipping(report, prefix),
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
