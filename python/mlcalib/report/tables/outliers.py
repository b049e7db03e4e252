"""The channels that LLM.int8() multiplies apart: a line for each language and model."""

from collections.abc import Sequence

from mlcalib.report.tables.perplexity import Table
from mlcalib.results.rows import Row

_COLUMNS = {
    "outlier_channels": "outlier channels of a linear",
    "outlier_share": "of its channels, %",
    "outlier_linears": "linears with outliers, %",
}


def outlier_table(rows: Sequence[Row]) -> Table:
    """Return the metrics of the task ``llm_int8``: means over linears and windows of text.

    Raises:
        ValueError: no rows of that task.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.task == "llm_int8":
            found.setdefault((row.language, row.model), {})[row.metric] = row.value
    if not found:
        raise ValueError(
            "There are no outlier channels among these results; measure them with mlcalib "
            "evaluate --llm-int8 6."
        )
    table = [["language", "model", *_COLUMNS.values()]]
    for (language, model), values in found.items():
        cells = [
            f"{values[metric] * (1 if metric == 'outlier_channels' else 100):.2f}"
            for metric in _COLUMNS
        ]
        table.append([language, model, *cells])
    return table
