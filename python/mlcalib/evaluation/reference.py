"""The next-token distributions of the float model, with which other models are compared.

The distributions are not stored: for 10 languages of 8,192 tokens and a vocabulary of 256,000 they
would take 84 GB in float32. The hidden states that the output head reads are stored instead. For
this text, a hidden size of 4,096 and bfloat16 they take 0.7 GB. From them the head makes exactly
the logits of the first time, with one matrix product. So the float model runs only once, and is
never in memory together with a model that is compared with it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import Stream
from mlcalib.common.errors import named
from mlcalib.evaluation.batching import Batches
from mlcalib.evaluation.perplexity import Logits, Scores, score
from mlcalib.models.device import input_device
from mlcalib.models.loading import shared_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reference:
    """The distributions of the float model over a text, in any number of languages.

    Args:
        head: the head of the float model, as ``head_of`` returns.
        states: language → the states that ``recording`` recorded, [windows, seq_len, hidden size].
    """

    def __init__(self, head: "PreTrainedModel", states: Callable[[str], Tensor]) -> None:
        self._head = head
        self._states = states

    def logits(self, language: str) -> Logits:
        """Return what gives the logits of some windows of a language's text."""
        states = self._states(language)
        return lambda windows: _replayed(self._head, states[windows])


def head_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a copy of a model that has only its output head, with shared parameters.

    Raises:
        NotImplementedError: the model does not consist of a base model and a head.
    """
    _base(model)
    head = shared_copy(model)
    setattr(head, head.base_model_prefix, _Replay())
    return head


@contextmanager
def recording(model: "PreTrainedModel") -> Iterator[list[Tensor]]:
    """Record the hidden states [seq_len, hidden size] that the head reads of each window.

    They are kept in the host's memory.

    Raises:
        NotImplementedError: see ``head_of``.
    """
    states: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        states.extend(output.last_hidden_state.cpu())

    handle = _base(model).register_forward_hook(record)
    try:
        yield states
    finally:
        handle.remove()


def recorded_score(
    model: "PreTrainedModel", text: Stream, batch: int = 1, *, tokens: int, seq_len: int
) -> tuple[Scores, Tensor]:
    """Score a model as ``score`` does; return its states too, [windows, seq_len, hidden size]."""
    with recording(model) as recorded:
        found = score(model, text, batch, tokens=tokens, seq_len=seq_len)
    return found, torch.stack(recorded)


def reference_of(
    model: "PreTrainedModel", texts: Mapping[str, Stream], *, tokens: int, seq_len: int
) -> tuple[Reference, dict[str, Scores]]:
    """Run the float model once, for its scores and for the reference of other models.

    Args:
        model: the float model. Its head (and what is tied to it) stays in memory.
        texts: language → text, as ``eval_text`` returns.
        tokens: the number of tokens to score in each language.
        seq_len: the context, in tokens.

    Returns:
        The reference, which keeps tokens × hidden size numbers in memory, and the scores.

    Raises:
        ValueError: see ``score``; the message names the language.
        NotImplementedError: see ``head_of``.
    """
    states: dict[str, Tensor] = {}
    scores: dict[str, Scores] = {}
    batches = Batches()
    for code, text in texts.items():
        run = partial(recorded_score, model, text, tokens=tokens, seq_len=seq_len)
        with named(f"language '{code}'"):
            scores[code], states[code] = batches.run(model, seq_len, run)
    return Reference(head_of(model), states.__getitem__), scores


def fidelity_of(
    model: "PreTrainedModel",
    texts: Mapping[str, Stream],
    reference: Reference,
    *,
    tokens: int,
    seq_len: int,
) -> dict[str, Scores]:
    """Score a model for perplexity and against a reference, in one forward.

    Args:
        model: the model, with the vocabulary of the reference.
        texts: the texts, ``tokens`` and ``seq_len`` must be those of the reference.
        reference: what ``reference_of`` returned.
        tokens: the number of tokens to score in each language.
        seq_len: the context, in tokens.

    Raises:
        ValueError: see ``score``; the message names the language.
    """
    scores, batches = {}, Batches()
    for code, text in texts.items():
        logits = reference.logits(code)
        run = partial(score, model, text, tokens=tokens, seq_len=seq_len, reference=logits)
        with named(f"language '{code}'"):
            scores[code] = batches.run(model, seq_len, run)
    return scores


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
    where = input_device(head)
    head.base_model.states = states.to(where)
    ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=where)  # not looked at
    logits: Tensor = head(input_ids=ids, use_cache=False).logits
    return logits
