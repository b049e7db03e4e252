"""Benchmark tasks and fidelity of a study, as an evaluation has them: variants are models."""

from collections.abc import Mapping
from dataclasses import replace

from mlcalib.report.comparison.relative_changes import Model
from mlcalib.report.evaluation_report.compared import FIDELITY, PERPLEXITY, Compared, compare
from mlcalib.report.study_report.folder import FLOAT, Evaluation
from mlcalib.results.rows import ItemScores, Results, joined


def compared(
    evaluations: Mapping[str, Evaluation],
    labels: Mapping[str, str],
    resamples: int,
    seed: int,
    *,
    perplexity: bool = False,
) -> Compared | None:
    """Return the float model and some variants, as an evaluation has its models.

    Args:
        evaluations: ``float`` or variant → evaluation.
        labels: variant → what tables call it.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        perplexity: whether perplexity is compared, too.

    Returns:
        None where nothing of it was measured, or nothing of the float model.
    """
    labels = {FLOAT: FLOAT, **labels}
    measured = {
        name: evaluations[name] for name in labels if name in evaluations and evaluations[name].rows
    }
    joint = joined(_as_results(each, name, perplexity) for name, each in measured.items())
    if not joint or FLOAT not in measured:
        return None
    named = {_origin(each, name): labels[name] for name, each in measured.items()}
    return compare(joint, labels=named, resamples=resamples, seed=seed)


def _origin(evaluation: Evaluation, variant: str) -> Model:
    return variant, evaluation.rows[0].method, evaluation.rows[0].calibration


def _as_results(evaluation: Evaluation, variant: str, perplexity: bool) -> Results:
    rows = [
        replace(row, model=variant)
        for row in evaluation.rows
        if perplexity or row.task != PERPLEXITY
    ]
    first = {(row.task, row.language): row.metric for row in reversed(rows)}
    of = _origin(evaluation, variant)
    items = [
        ItemScores(*of, code, task, first[task, code], values)
        for task, languages in evaluation.items.items()
        for code, values in languages.items()
        if (task, code) in first
    ]
    items += [
        ItemScores(*of, code, FIDELITY, "kl", values, evaluation.documents[code].tokens)
        for code, values in evaluation.divergence.items()
    ]
    if perplexity:
        items += [
            ItemScores(*of, code, PERPLEXITY, "perplexity", each.loss, each.tokens)
            for code, each in evaluation.documents.items()
        ]
    lacking = [
        ItemScores(*of, cell.language, cell.task, cell.metric, [], missing=str(cell))
        for cell in evaluation.missing
    ]
    return Results(rows, items + lacking)
