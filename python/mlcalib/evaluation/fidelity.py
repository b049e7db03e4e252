"""Measures how far the predictions of a model are from those of the float model.

If a model knows a language badly, its loss can fall by chance. A divergence cannot.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlcalib.evaluation.perplexity import DocumentScores, Scores
from mlcalib.results.rows import Row, versions
from mlcalib.results.significance import paired_ratio

WORST = 0.05
"""The share of documents for which ``worst_share`` says how much of the rise they carry."""


DEFINITION = (
    "Rise of the mean token loss (nats) against the first model, with its 95 % interval by 10,000 "
    "paired resamples of documents (seed 0); a rise or fall marked * is significant (p < 0.05, "
    "Holm's correction for the number of languages). KL is the mean over tokens of KL(first model "
    "|| model) of next-token distributions, in nats; p90 and p99 are percentiles over tokens. The "
    "last column is the part of the rise in loss that the 5 % of documents (at least one) whose "
    "loss rose most carry: 5 % if all rise alike, more than 100 % if the others fall. Standard "
    "errors (±) are over documents."
)
"""The metrics of ``fidelity_rows`` in words, to print below a table."""


def fidelity_rows(
    scores: Mapping[str, Scores],
    reference: Mapping[str, Scores],
    model: str,
    method: str,
    calibration: str,
    windows: str = "",
) -> list[Row]:
    """Return how far a model is from its reference, as rows per language.

    These metrics are over tokens, with standard errors over documents: ``kl`` (the mean of
    KL(float || model), in nats), ``kl_p90`` and ``kl_p99`` (its percentiles), ``top1_agreement`` (a
    share), and ``loss_rise`` (of the mean token loss, in nats; its error is over paired documents).
    These metrics are over documents: ``loss_rise_low``, ``loss_rise_high`` and ``loss_rise_p`` (of
    ``significance.paired_ratio``), which a single document does not have; and
    ``worst_documents_share`` (see ``worst_share``), which does not exist if the loss did not rise.

    Args:
        scores: language → what ``fidelity_of`` returned.
        reference: language → the scores of the float model itself.
        model: the name of the model in the rows.
        method: the name of its quantizer.
        calibration: the name of its calibration set.
        windows: what every window began with.
    """
    origin: dict[str, Any] = {"model": model, "method": method, "calibration": calibration}
    origin |= {"versions": versions(), "windows": windows}
    return [
        Row(language=code, task="fidelity", **origin, **metric)
        for code, found in scores.items()
        for metric in _metrics(found, reference[code])
    ]


def worst_share(reference: DocumentScores, model: DocumentScores) -> float | None:
    """Return the share of the rise of the loss that the worst 5 % of documents carry.

    Of n documents these are the ceil(n / 20) whose loss rose most, in nats over the whole document.
    The share is 0.05 if all documents have one length and rise equally. It is above 1 if without
    these documents the loss would have fallen.

    Returns:
        The share, or None if the loss did not rise.

    Raises:
        ValueError: the two models were scored on different documents.
    """
    if (reference.tokens, reference.bytes) != (model.tokens, model.bytes):
        raise ValueError(
            f"The two models were scored on other documents ({len(reference.tokens)} and "
            f"{len(model.tokens)}); score both on the same text."
        )
    pairs = zip(reference.loss, model.loss, strict=True)
    rises = sorted((after - before for before, after in pairs), reverse=True)
    total = math.fsum(rises)
    if total <= 0:
        return None
    return math.fsum(rises[: math.ceil(len(rises) * WORST)]) / total


def _metrics(found: Scores, reference: Scores) -> list[dict[str, Any]]:
    """Return metric, value, standard error, n and seed of rows."""
    if found.kl is None or found.agrees is None:
        raise ValueError("The scores were measured without a reference; use fidelity_of.")
    over_tokens = {
        "kl": found.mean(found.kl),
        "kl_p90": _percentile(found, found.kl, 0.9),
        "kl_p99": _percentile(found, found.kl, 0.99),
        "top1_agreement": found.mean(found.agrees),
        "loss_rise": found.mean(found.loss - reference.loss),
    }
    rows: list[dict[str, Any]] = [
        {"metric": metric, "value": value, "stderr": stderr, "n": len(found.kl)}
        for metric, (value, stderr) in over_tokens.items()
    ]
    before, after = reference.by_document(), found.by_document()
    rise = paired_ratio(before.loss, after.loss, after.tokens)
    over_documents = {f"loss_rise_{name}": getattr(rise, name) for name in ("low", "high", "p")}
    rows += [
        {"metric": metric, "value": value, "stderr": None, "n": rise.n, "seed": rise.seed}
        for metric, value in over_documents.items()
        if value is not None
    ]
    if (share := worst_share(before, after)) is not None:
        rows.append(
            {"metric": "worst_documents_share", "value": share, "stderr": None, "n": rise.n}
        )
    return rows


def _percentile(scores: Scores, values: Tensor, p: float) -> tuple[float, float | None]:
    """Return a percentile of values of tokens, and its standard error over documents.

    Woodruff's (1952): the error of the share of tokens below the percentile, turned into one of the
    percentile by the quantiles that far above and below.
    """
    value = float(values.quantile(p))
    _, error = scores.mean(values <= value)
    if error is None:
        return value, None
    low, high = (float(values.quantile(min(max(p + by, 0.0), 1.0))) for by in (-error, error))
    return value, (high - low) / 2
