"""What sets models apart from the float model: a line for each language and model."""

from collections.abc import Sequence

from mlcalib.report.tables import Table
from mlcalib.results import Row

_COLUMNS = {
    "kl": "KL",
    "kl_p90": "KL p90",
    "kl_p99": "KL p99",
    "top1_agreement": "same top token, %",
    "worst_documents_share": "worst 5 % of documents, % of rise",
}


def fidelity_table(rows: Sequence[Row]) -> Table:
    """Return the metrics of the task ``fidelity`` ± standard errors.

    A share of the rise that is missing says so: the loss did not rise in that language.

    Raises:
        ValueError: no rows of that task.
    """
    found: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.task == "fidelity":
            key = (row.language, row.model, row.method, row.calibration)
            found.setdefault(key, {})[row.metric] = row
    if not found:
        raise ValueError(
            "There is no fidelity among these results; measure it with mlcalib evaluate --fidelity."
        )
    order = {language: at for at, language in enumerate(dict.fromkeys(key[0] for key in found))}
    table = [["language", "model", *_COLUMNS.values()]]
    for key in sorted(found, key=lambda key: order[key[0]]):  # the sort is stable
        language, model, method, calibration = key
        label = method if calibration == "none" else f"{method} {calibration}"
        alone = [each[2:] for each in found if each[0] == language].count(key[2:]) == 1
        cells = [language, label if alone else f"{label} {model}"]
        table.append([*cells, *(_cell(found[key], metric) for metric in _COLUMNS)])
    return table


def _cell(metrics: dict[str, Row], metric: str) -> str:
    if metric not in metrics:
        return "no rise" if metric == "worst_documents_share" else "not measured"
    row = metrics[metric]
    if metric.startswith("kl"):
        error = "" if row.stderr is None else f" ± {row.stderr:.2g}"
        return f"{row.value:.4g}{error}"
    error = "" if row.stderr is None else f" ± {100 * row.stderr:.1f}"
    return f"{100 * row.value:.1f}{error}"
