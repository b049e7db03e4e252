"""The benchmark tasks of a study, as an evaluation has them: variants are its models."""

from collections.abc import Mapping
from dataclasses import replace

from mlcalib.report.evaluation.compared import PERPLEXITY, Compared, compare
from mlcalib.report.study.comparison import Grid
from mlcalib.report.study.folder import FLOAT, Evaluation
from mlcalib.results import ItemScores, Results, joined


def compared(
    evaluations: Mapping[str, Evaluation], grid: Grid, *, resamples: int, seed: int
) -> Compared | None:
    """Return the float model and the variants of a heat map, as an evaluation has its models.

    None where the float model's tasks were not measured.
    """
    labels = {FLOAT: FLOAT} | {
        column.variant: column.label for column in [*grid.references, *grid.columns]
    }
    measured = [_as_results(evaluations[name], name) for name in labels if name in evaluations]
    joint = joined(measured)
    if not any(row.model == FLOAT for row in joint):
        return None
    named = {(row.model, row.method, row.calibration): labels[row.model] for row in joint}
    return compare(joint, labels=named, resamples=resamples, seed=seed)


def _as_results(evaluation: Evaluation, variant: str) -> Results:
    rows = [replace(row, model=variant) for row in evaluation.rows if row.task != PERPLEXITY]
    if not rows:
        return Results()
    first = {(row.task, row.language): row.metric for row in reversed(rows)}
    of = (variant, rows[0].method, rows[0].calibration)
    items = [
        ItemScores(*of, code, task, first[task, code], values)
        for task, languages in evaluation.items.items()
        for code, values in languages.items()
        if (task, code) in first
    ]
    lacking = [
        ItemScores(*of, cell.language, cell.task, cell.metric, [], missing=str(cell))
        for cell in evaluation.missing
    ]
    return Results(rows, items + lacking)
