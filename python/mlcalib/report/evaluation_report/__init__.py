"""The report of an evaluation: one page, the tables behind it, figures for a paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from mlcalib.report.evaluation_report.answer import answer, run
from mlcalib.report.evaluation_report.changes import changes
from mlcalib.report.evaluation_report.compared import Compared, compare, find_model
from mlcalib.report.evaluation_report.fidelity import fidelity
from mlcalib.report.evaluation_report.figures import drawing
from mlcalib.report.evaluation_report.flips import flips
from mlcalib.report.evaluation_report.scores import scores
from mlcalib.report.evaluation_report.tables import tables
from mlcalib.report.page import check_page, write_figures, write_page
from mlcalib.report.page.canvas import Drawing, style
from mlcalib.report.page.document import Section
from mlcalib.results.rows import Results, joined, read_results


@runtime_checkable
class HasResults(Protocol):
    """What has results, such as what ``mlcalib.evaluation.tasks.run_tasks`` returns."""

    @property
    def results(self) -> Results:
        """The rows and their items."""


Source: TypeAlias = str | Path | Results | HasResults
"""A file of ``mlcalib evaluate --out``, what ``mlcalib.evaluate`` or ``run_tasks`` returned."""


def write_evaluation_report(
    sources: Source | Sequence[Source],
    out: str | Path | None = None,
    *,
    baseline: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Path:
    """Write the report of an evaluation: a page, Markdown, tables as CSV, figures as SVG and PDF.

    Scores of every task, language and model with standard errors; relative change against the
    float model per task and language, averaged over tasks and by script, family and resource tier;
    wins, losses and ties; flipped answers; fidelity; and which of these differences are more than
    chance. Same results, same bytes.

    Args:
        sources: one or several, of one or several models on the same items: files that ``mlcalib
            evaluate --out`` wrote (their items are found beside them), what ``mlcalib.evaluate``
            or ``run_tasks`` returned. Rows without items are shown and not tested.
        out: the HTML file; the same name with ``.md``, and the folders ``tables`` and ``figures``
            are written beside it. Default: ``ROWS.report/report.html`` beside the first file.
        baseline: name or label of the model to compare with. Default: the first.
        resamples: of the bootstrap behind every interval.
        seed: of the bootstrap.

    Returns:
        The HTML file.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: matplotlib or pandas is not installed.
        ValueError: a damaged file, which is named; rows that contradict each other; models that
            were scored on other items; no or several models by the name given; ``out`` that does
            not end in ``.html``, or none where no source is a file.
    """
    given = _listed(sources)
    page = _page(given) if out is None else Path(out)
    check_page(page)
    results = joined(map(_results, given))
    chosen = None if baseline is None else find_model(results, baseline)
    compared = compare(results, chosen, resamples=resamples, seed=seed)
    parts, numbers = sections(compared), tables(compared)
    with style():
        figures = write_figures(_drawings(compared), page.parent / "figures")
    write_page(page, "Evaluation", parts, numbers, figures)
    return page


def sections(compared: Compared) -> list[Section]:
    """Return all that the report says, in its order."""
    both = (
        ("changes", "tasks", compared.changes),
        ("perplexity", "perplexity", compared.perplexity),
    )
    parts = [
        Section(name, f"What quantization changed: {what}", changes(compared, found, name))
        for name, what, found in both
        if found
    ]
    parts += [
        Section("flips", "Answers that flipped", flips(compared)),
        Section("fidelity", "Fidelity: how far predictions moved", fidelity(compared)),
    ]
    present = [part for part in parts if part.blocks]
    return [answer(compared), *present, scores(compared), run(compared)]


def _drawings(compared: Compared) -> list[Drawing]:
    both = {"changes": compared.changes, "perplexity": compared.perplexity}
    return [drawing(name, compared, found) for name, found in both.items() if found]


def _listed(sources: Source | Sequence[Source]) -> list[Source]:
    if isinstance(sources, str | Path | Results | HasResults):
        return [sources]
    return list(sources)


def _results(source: Source) -> Results:
    if isinstance(source, HasResults):
        return source.results
    if isinstance(source, str | Path):
        return read_results(source)
    return source


def _page(sources: list[Source]) -> Path:
    files = [Path(each) for each in sources if isinstance(each, str | Path)]
    if not files:
        raise ValueError("Say where the report goes (out='report.html'); no source is a file.")
    return files[0].with_name(f"{files[0].stem}.report") / "report.html"
