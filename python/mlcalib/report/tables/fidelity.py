"""What sets models apart from the float model: a line for each language and model."""

from collections.abc import Sequence

from mlcalib.report.tables.perplexity import Table
from mlcalib.results.rows import Row
from mlcalib.results.significance import holm

_COLUMNS = {
    "loss_rise": "rise in loss",
    "kl": "KL",
    "kl_p90": "KL p90",
    "kl_p99": "KL p99",
    "top1_agreement": "same top token, %",
    "worst_documents_share": "worst 5 % of documents, % of rise",
}

_Model = tuple[str, str, str]
_Metrics = dict[str, Row]


def fidelity_table(rows: Sequence[Row]) -> Table:
    """Return the metrics of the task ``fidelity``, with intervals and standard errors.

    A rise is marked ``*`` where its p, corrected for the number of languages (Holm), is below 0.05.
    A share of the rise that is missing says so: the loss did not rise in that language.

    Raises:
        ValueError: no rows of that task.
    """
    found: dict[str, dict[_Model, _Metrics]] = {}
    for row in rows:
        if row.task == "fidelity":
            models = found.setdefault(row.language, {})
            models.setdefault((row.model, row.method, row.calibration), {})[row.metric] = row
    if not found:
        raise ValueError(
            "There is no fidelity among these results; measure it with mlcalib evaluate --fidelity."
        )
    marked = _significant(found)
    table = [["language", "model", *_COLUMNS.values()]]
    for language, models in found.items():
        for model, metrics in models.items():
            cells = [_cell(metrics, metric) for metric in _COLUMNS]
            cells[0] += " *" if (language, model) in marked else ""
            table.append([language, _label(model, list(models)), *cells])
    return table


def _significant(found: dict[str, dict[_Model, _Metrics]]) -> set[tuple[str, _Model]]:
    """Return the languages and models whose loss changed by more than chance explains."""
    p_values: dict[_Model, dict[str, float]] = {}
    for language, models in found.items():
        for model, metrics in models.items():
            if "loss_rise_p" in metrics:
                p_values.setdefault(model, {})[language] = metrics["loss_rise_p"].value
    return {
        (language, model)
        for model, by_language in p_values.items()
        for language, p in holm(by_language).items()
        if p < 0.05
    }


def _cell(metrics: _Metrics, metric: str) -> str:
    if metric not in metrics:
        return "no rise" if metric == "worst_documents_share" else "not measured"
    row = metrics[metric]
    if metric == "loss_rise":
        ends = [metrics[f"{metric}_{end}"].value for end in ("low", "high") if _has(metrics, end)]
        return f"{row.value:+.4f}" + (f" [{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "")
    if metric.startswith("kl"):
        return f"{row.value:.4g}" + ("" if row.stderr is None else f" ± {row.stderr:.2g}")
    return f"{100 * row.value:.1f}" + ("" if row.stderr is None else f" ± {100 * row.stderr:.1f}")


def _has(metrics: _Metrics, end: str) -> bool:
    return f"loss_rise_{end}" in metrics


def _label(model: _Model, models: Sequence[_Model]) -> str:
    """Say method and calibration, and the model's own name where these are not enough."""
    name, method, calibration = model
    label = method if calibration == "none" else f"{method} {calibration}"
    alone = [other[1:] for other in models].count((method, calibration)) == 1
    return label if alone else f"{label} {name}"
