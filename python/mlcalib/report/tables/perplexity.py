"""Languages down, models across."""

from collections.abc import Sequence
from statistics import fmean

from mlcalib.results.rows import Row
from mlcalib.results.scores import Model, label, model_of

Table = list[list[str]]
"""Cells as text: the header, then the rows."""


def perplexity_table(rows: Sequence[Row]) -> Table:
    """Return perplexity ± standard error, and bits per byte, of every model per language."""
    models = _models(rows)
    values = {(model_of(row), row.language, row.metric): row for row in rows}
    table = [["language", *(f"{label(model, models)}" for model in models)]]
    for language in _languages(rows):
        cells = [language]
        for model in models:
            perplexity = values[model, language, "perplexity"]
            bits = values[model, language, "bits_per_byte"]
            error = "" if perplexity.stderr is None else f" ± {perplexity.stderr:.2f}"
            cells.append(f"{perplexity.value:.2f}{error} ({bits.value:.3f})")
        table.append(cells)
    return table


def rise_table(rows: Sequence[Row]) -> Table:
    """Return the rise in token loss (nats) of every model against the first, mean and worst last.

    Raises:
        ValueError: a single model, which has nothing to be compared with.
    """
    models = _models(rows)
    if len(models) < 2:
        raise ValueError("A rise needs two models or more: the first is what the others rise from.")
    loss = {(model_of(row), row.language): row.value for row in rows if row.metric == "token_loss"}
    first, *others = models
    languages = _languages(rows)
    rises = {
        model: [loss[model, language] - loss[first, language] for language in languages]
        for model in others
    }
    table = [["language", *(label(model, models) for model in others)]]
    for index, language in enumerate(languages):
        table.append([language, *(f"{rises[model][index]:+.3f}" for model in others)])
    table.append(["mean", *(f"{fmean(rises[model]):+.3f}" for model in others)])
    table.append(["worst", *(f"{max(rises[model]):+.3f}" for model in others)])
    return table


def metric_table(rows: Sequence[Row], metric: str) -> Table:
    """Return one metric of every model that has it, mean last."""
    rows = [row for row in rows if row.metric == metric]
    models, languages = _models(rows), _languages(rows)
    values = {(model_of(row), row.language): row.value for row in rows}
    table = [["language", *(label(model, models) for model in models)]]
    for language in languages:
        table.append([language, *(f"{values[model, language]:.3f}" for model in models)])
    means = (fmean(values[model, language] for language in languages) for model in models)
    table.append(["mean", *(f"{mean:.3f}" for mean in means)])
    return table


def markdown(table: Table) -> str:
    """Return a table as Markdown, aligned so that it reads as plain text too."""
    widths = [max(2, *map(len, column)) for column in zip(*table, strict=True)]  # '-:' at least
    header, *body = table
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(_pad(cells, widths)) + " |" for cells in [header, rule, *body]
    )


def _models(rows: Sequence[Row]) -> list[Model]:
    return list(dict.fromkeys(map(model_of, rows)))


def _languages(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.language for row in rows))


def _pad(cells: list[str], widths: list[int]) -> list[str]:
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return [cells[0].ljust(widths[0]), *numbers]
