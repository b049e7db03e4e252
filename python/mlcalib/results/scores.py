"""Scores of rows as people read them: units, which are better, names of models."""

from collections.abc import Sequence
from pathlib import Path

from mlcalib.results.rows import Row

Model = tuple[str, str, str]
"""Model, method and calibration of a row."""

LOWER_IS_BETTER = frozenset(
    {"perplexity", "bits_per_byte", "token_loss", "kl", "kl_p90", "kl_p99", "loss_rise"}
)
UNDIRECTED = frozenset({"worst_documents_share"})
"""Metrics of which neither more nor less is better."""

_DIGITS = {"perplexity": 2, "bits_per_byte": 3, "token_loss": 3, "loss_rise": 4}
_DIGITS |= {"kl": 4, "kl_p90": 4, "kl_p99": 4}
_PERCENT = ("acc", "exact_match", "line_pass_rate", "word_pass_rate", "top1_agreement")


def model_of(row: Row) -> Model:
    """Return what tells the models of rows apart."""
    return row.model, row.method, row.calibration


def label(model: Model, models: Sequence[Model]) -> str:
    """Say method and calibration; where these are not enough, the end of the name or all of it."""
    name, method, calibration = model
    short = method if calibration == "none" else f"{method} {calibration}"
    alike = [other for other, *what in models if what == [method, calibration]]
    if len(alike) == 1:
        return short
    ends = [Path(other).name for other in alike]
    return f"{short} {Path(name).name if len(set(ends)) == len(ends) else name}"


def scale_of(metric: str) -> int:
    """Return what a score is multiplied by to be shown: 100 for shares, 1 for all else."""
    return 100 if metric.startswith(_PERCENT) else 1


def score_text(row: Row) -> tuple[str, str]:
    """Return a score and its standard error as text; shares in per cent. No error is empty."""
    scale = scale_of(row.metric)
    digits = _DIGITS.get(row.metric, 1)
    error = "" if row.stderr is None else f"± {scale * row.stderr:.{digits}f}"
    return f"{scale * row.value:.{digits}f}", error
