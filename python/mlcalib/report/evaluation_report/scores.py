"""Every score with its standard error, and why some are not there."""

from mlcalib.report.comparison.relative_changes import Model
from mlcalib.report.evaluation_report.compared import FIDELITY, PERPLEXITY, Compared
from mlcalib.report.page.colours import NOTHING
from mlcalib.report.page.document import (
    MISSING,
    Beside,
    Block,
    Cell,
    Details,
    Paragraph,
    Row,
    Section,
    Table,
)
from mlcalib.report.page.words import head
from mlcalib.results.rows import Row as Result
from mlcalib.results.scores import score_text

NOTE = (
    "Accuracies and pass rates in per cent. Small: standard error, over items or over documents. "
    "n: items, or scored tokens of perplexity."
)


def scores(compared: Compared) -> Section:
    """Return a table for each task, the metric that it is compared by first."""
    main: list[Block] = []
    others: list[Block] = []
    tables: dict[tuple[str, str], list[str]] = {}
    for _, task, _, metric in compared.scores:
        if task != FIDELITY:
            known = tables.setdefault((task, _family(metric)), [])
            known += [metric] if metric not in known else []
    for (task, family), metrics in tables.items():
        first = {**compared.metrics, PERPLEXITY: "perplexity"}[task] in metrics
        (main if first else others).append(_table(compared, task, family, metrics))
    section = Section("scores", "Scores", [Paragraph(NOTE, "note"), Beside(main)])
    if others:
        section.blocks.append(Details("The other metrics", [Beside(others)]))
    section.blocks += _without_numbers(compared, list(tables))
    return section


def _family(metric: str) -> str:
    """Put BLEU of all tokenizers into one table."""
    return "bleu" if metric.startswith("bleu_") else metric


def _table(compared: Compared, task: str, family: str, metrics: list[str]) -> Table:
    rows: list[Row] = []
    for code in compared.languages:
        found = [_score(compared, model, task, code, metrics) for model in compared.labels]
        counts = sorted({row.n for row in found if row is not None})
        cells = [
            _cell(compared, model, task, code, metrics, row)
            for model, row in zip(compared.labels, found, strict=True)
        ]
        rows.append([head(code), " / ".join(f"{count:,}" for count in counts), *cells])
    header = ["language", "n", *compared.labels.values()]
    return Table(f"{task}, {family}", header, rows)


def _score(
    compared: Compared, model: Model, task: str, code: str, metrics: list[str]
) -> Result | None:
    found = (compared.row(model, task, code, metric) for metric in metrics)
    return next((row for row in found if row is not None), None)


def _cell(
    compared: Compared, model: Model, task: str, code: str, metrics: list[str], row: Result | None
) -> Cell:
    if row is None:
        return missing(compared.why(model, task, code, metrics[0]) or MISSING, None)
    text, error = score_text(row)
    tokenizer = row.metric.removeprefix("bleu_") if len(metrics) > 1 else ""
    return Cell(text, f"{error} {tokenizer}".strip())


def missing(why: str, colour: str | None = NOTHING) -> Cell:
    """Return a cell without a number: the reason, what could stand in for it smaller below."""
    reason, _, offer = why.partition(" (")
    return Cell(reason, offer.rstrip(")"), colour=colour, grey=True)


def _without_numbers(compared: Compared, there: list[tuple[str, str]]) -> list[Block]:
    """Name the tasks, and the metrics, that have no number in any language."""
    scored = {(task, family) for task, family in there}
    absent: dict[str, dict[str, list[str]]] = {}
    for (_, task, code, metric), why in compared.missing.items():
        parts = [known for known, _ in scored if known == task or known.startswith(f"{task}_")]
        if (metric is None and parts) or (metric is not None and (task, _family(metric)) in scored):
            continue
        name = task if metric is None else f"{task}, {metric}"
        codes = absent.setdefault(name, {}).setdefault(why, [])
        codes += [code] if code not in codes else []
    return [
        Paragraph(f"**{name}**: {why} ({', '.join(codes)}).", "note")
        for name, reasons in absent.items()
        for why, codes in reasons.items()
    ]
