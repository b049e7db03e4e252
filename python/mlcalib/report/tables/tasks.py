"""Benchmark tasks: a line for each task, metric and language, a column for each model."""

from collections.abc import Mapping, Sequence

from mlcalib.report.tables.perplexity import Table
from mlcalib.results.rows import Row
from mlcalib.results.scores import label, score_text

Missing = Mapping[tuple[str, str, str | None], str]
"""(task, language, metric or None for all of it) → why there is no number."""


def task_table(rows: Sequence[Row], missing: Missing) -> Table:
    """Return every score ± its standard error, and n. What is missing says why.

    Shares (accuracies, pass rates) are in per cent, as BLEU, chrF++ and ROUGE-L are.
    """
    models = list(dict.fromkeys((row.model, row.method, row.calibration) for row in rows))
    values = {
        (row.task, row.metric, row.language, (row.model, row.method, row.calibration)): row
        for row in rows
    }
    lines = dict.fromkeys((row.task, row.metric, row.language) for row in rows)
    table = [["task", "metric", "language", "n", *(label(model, models) for model in models)]]
    for task, metric, language in lines:
        found = [values.get((task, metric, language, model)) for model in models]
        counts = sorted({row.n for row in found if row is not None})
        cells = ["not measured" if row is None else _cell(row) for row in found]
        table.append([task, metric, language, " / ".join(map(str, counts)), *cells])
    for (task, language, lacking), why in missing.items():
        table.append([task, lacking or "", language, "0", *[why] * len(models)])
    return [table[0], *sorted(table[1:], key=lambda cells: cells[0])]  # the sort is stable


def _cell(row: Row) -> str:
    return " ".join(score_text(row)).strip()
