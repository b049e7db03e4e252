"""How near a model's predictions stay to those of the float model.

A loss can fall by chance where a model knows a language badly; a divergence cannot. The float
model's distributions are not stored (tokens x vocabulary numbers: 10 languages of 8,192 tokens
over 256,000 tokens of vocabulary are 84 GB in float32). What its output head reads is: tokens x
hidden size, in the model's dtype, 0.7 GB for the same text and a hidden size of 4,096 in bfloat16.
The head makes the very same logits of it again, at the cost of one matrix product, so that a float
model runs once for any number of models compared with it, and never beside one of them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import Stream
from mlcalib.errors import named
from mlcalib.evaluation.perplexity import DocumentScores, Scores, score
from mlcalib.models.loading import shared_copy
from mlcalib.results import Row, versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORST = 0.05
"""The share of documents whose part in the rise of the loss is told."""


DEFINITION = (
    "KL is the mean over tokens of KL(first model || model) of next-token distributions, in nats; "
    "p90 and p99 are percentiles over tokens. The last column is the part of the rise in loss that "
    "the 5 % of documents (at least one) whose loss rose most carry: 5 % if all rise alike, "
    "more than 100 % if the others fall. Standard errors are over documents."
)
"""What ``fidelity_rows`` gives, for people to read below a table."""


class Reference:
    """The float model's distributions over a text, in any number of languages.

    Args:
        head: what ``head_of`` returned.
        states: language → what ``recording`` recorded of it, [windows, seq_len, hidden size].
    """

    def __init__(self, head: "PreTrainedModel", states: Callable[[str], Tensor]) -> None:
        self._head = head
        self._states = states

    def logits(self, language: str) -> Iterator[Tensor]:
        """Return the logits [seq_len, vocabulary] of each window, one at a time."""
        return (_replayed(self._head, window) for window in self._states(language))


def head_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a copy of a model that has its output head alone; the parameters are shared.

    Raises:
        NotImplementedError: a model that is not made of a base model and a head.
    """
    _base(model)
    head = shared_copy(model)
    setattr(head, head.base_model_prefix, _Replay())
    return head


@contextmanager
def recording(model: "PreTrainedModel") -> Iterator[list[Tensor]]:
    """Record the hidden states [seq_len, hidden size] that the head reads, of each forward.

    Raises:
        NotImplementedError: as ``head_of``.
    """
    states: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output.last_hidden_state[0])

    handle = _base(model).register_forward_hook(record)
    try:
        yield states
    finally:
        handle.remove()


def reference_of(
    model: "PreTrainedModel", texts: Mapping[str, Stream], *, tokens: int, seq_len: int
) -> tuple[Reference, dict[str, Scores]]:
    """Run a float model once, for its own scores and for what others are compared with.

    Args:
        model: the float model. Its head (and what is tied to it) stays in memory.
        texts: language → text: what ``eval_text`` gives.
        tokens: tokens to score of each.
        seq_len: context.

    Returns:
        The reference, which holds tokens x hidden size numbers in memory, and the scores.

    Raises:
        ValueError: see ``score``; names the language.
        NotImplementedError: see ``head_of``.
    """
    states: dict[str, Tensor] = {}
    scores: dict[str, Scores] = {}
    for code, text in texts.items():
        with named(f"language '{code}'"), recording(model) as recorded:
            scores[code] = score(model, text, tokens=tokens, seq_len=seq_len)
        states[code] = torch.stack(recorded)
    return Reference(head_of(model), states.__getitem__), scores


def fidelity_of(
    model: "PreTrainedModel",
    texts: Mapping[str, Stream],
    reference: Reference,
    *,
    tokens: int,
    seq_len: int,
) -> dict[str, Scores]:
    """Score a model, in one forward, for perplexity and against a reference.

    Args:
        model: the model, with the reference's vocabulary.
        texts: those that the reference was made of, likewise ``tokens`` and ``seq_len``.
        reference: what ``reference_of`` returned.
        tokens: tokens to score of each.
        seq_len: context.

    Raises:
        ValueError: see ``score``; names the language.
    """
    scores = {}
    for code, text in texts.items():
        with named(f"language '{code}'"):
            logits = reference.logits(code)
            scores[code] = score(model, text, tokens=tokens, seq_len=seq_len, reference=logits)
    return scores


def fidelity_rows(
    scores: Mapping[str, Scores],
    reference: Mapping[str, Scores],
    model: str,
    method: str,
    calibration: str,
) -> list[Row]:
    """Return what sets a model apart from its reference, per language.

    Metrics: ``kl`` (mean KL(float || model), nats), ``kl_p90`` and ``kl_p99`` (percentiles over
    tokens), ``top1_agreement`` (share of tokens), all with standard errors over documents, and
    ``worst_documents_share`` (see ``worst_share``; n is the number of documents), which is left out
    where the loss did not rise.

    Args:
        scores: language → what ``fidelity_of`` returned.
        reference: language → the float model's own scores.
        model: as in ``Row``, likewise ``method`` and ``calibration``.
        method: the quantizer.
        calibration: the calibration set's name.
    """
    computed = versions()
    rows = []
    for code, found in scores.items():
        for metric, value, stderr, n in _metrics(found, reference[code]):
            rows.append(
                Row(
                    model=model,
                    method=method,
                    calibration=calibration,
                    language=code,
                    task="fidelity",
                    metric=metric,
                    value=value,
                    stderr=stderr,
                    n=n,
                    versions=computed,
                )
            )
    return rows


def worst_share(reference: DocumentScores, model: DocumentScores) -> float | None:
    """Return the share of the rise in loss that the worst 5 % of documents carry.

    Of n documents these are the ceil(n / 20) whose loss rose most, in nats over the whole document.
    0.05 would be an even rise of documents of one length; more than 1 means that without them the
    loss would have fallen.

    Returns:
        The share; None where the loss did not rise.

    Raises:
        ValueError: the two do not hold the same documents.
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


class Flips(NamedTuple):
    """Answers that changed.

    Attributes:
        right_to_wrong: items that the float model had right, and the model has wrong.
        wrong_to_right: the reverse.
        n: items in all.
    """

    right_to_wrong: int
    wrong_to_right: int
    n: int


def flips(float_items: Sequence[int], model_items: Sequence[int]) -> Flips:
    """Count the answers of one task that changed; accuracy hides those that cancel.

    Args:
        float_items: of each item, 1 where the float model is right, else 0.
        model_items: likewise of the model, same items in the same order.

    Raises:
        ValueError: no items, other numbers of items, or values other than 0 and 1.
    """
    if len(float_items) != len(model_items) or not float_items:
        raise ValueError(
            f"There are {len(float_items)} items of the float model and {len(model_items)} of the "
            "other; give one or more, the same of both."
        )
    if foreign := {*float_items, *model_items} - {0, 1}:
        raise ValueError(f"An item is {foreign.pop()!r}; expected 1 (right) or 0 (wrong).")
    pairs = list(zip(float_items, model_items, strict=True))
    return Flips(pairs.count((1, 0)), pairs.count((0, 1)), len(pairs))


def _metrics(found: Scores, reference: Scores) -> list[tuple[str, float, float | None, int]]:
    """Return metric, value, standard error and n."""
    if found.kl is None or found.agrees is None:
        raise ValueError("The scores were measured without a reference; use fidelity_of.")
    n = len(found.kl)
    rows = [("kl", *found.mean(found.kl), n)]
    rows += [(f"kl_p{round(100 * p)}", *_percentile(found, found.kl, p), n) for p in (0.9, 0.99)]
    rows.append(("top1_agreement", *found.mean(found.agrees), n))
    documents = reference.by_document()
    share = worst_share(documents, found.by_document())
    if share is not None:
        rows.append(("worst_documents_share", share, None, len(documents.loss)))
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


def _base(model: "PreTrainedModel") -> nn.Module:
    base: nn.Module = model.base_model
    if base is model:
        raise NotImplementedError(
            f"{type(model).__name__} is not made of a base model and an output head, as causal "
            "language models of transformers are; its predictions cannot be kept for comparison."
        )
    return base


class _Replay(nn.Module):
    """Stands where the base model was, and gives the hidden states that it once gave."""

    states: Tensor

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=self.states)


@torch.inference_mode()
def _replayed(head: "PreTrainedModel", states: Tensor) -> Tensor:
    head.base_model.states = states[None]
    ids = torch.zeros(1, len(states), dtype=torch.int64)  # not looked at
    logits: Tensor = head(input_ids=ids, use_cache=False).logits[0]
    return logits
