"""Measured results in a checkpoint's model card."""

from collections.abc import Sequence
from pathlib import Path

from mlcalib.checkpoints.card import write_results
from mlcalib.report.tables.perplexity import markdown, perplexity_table, rise_table
from mlcalib.results.rows import Row


def write_model_card(folder: str | Path, rows: Sequence[Row], definition: str) -> None:
    """Put measured results into the model card of a checkpoint that mlcalib wrote.

    They replace those that were there; what else the card says is kept. All of it or nothing.

    Args:
        folder: the checkpoint.
        rows: of the checkpoint, and of the models that it is compared with.
        definition: how they were measured, in words.

    Raises:
        ValueError: no rows, or a folder without a card that has a place for results.
    """
    if not rows:
        raise ValueError(f"There are no results to put into the card of {folder}.")
    rows = sorted(rows, key=lambda row: row.method != "float")  # the sort is stable
    models = dict.fromkeys((row.method, row.model) for row in rows)
    parts = [f"Perplexity ± standard error (bits per byte):\n\n{markdown(perplexity_table(rows))}"]
    if len({(row.model, row.method, row.calibration) for row in rows}) > 1:
        parts.append(
            f"Rise in token loss (nats) against {rows[0].method}:\n\n{markdown(rise_table(rows))}"
        )
    parts.append(definition)
    floats = [model for method, model in models if method == "float"]
    if floats:
        parts.append(f"`float` is {' and '.join(f'`{model}`' for model in floats)}.")
    write_results(folder, "\n\n".join(parts))
