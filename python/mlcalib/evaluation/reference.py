"""The float model's next-token distributions, for any number of models to be compared with.

They are not stored: tokens x vocabulary numbers, 84 GB in float32 for 10 languages of 8,192 tokens
over a vocabulary of 256,000. What the output head reads is: tokens x hidden size in the model's
dtype, 0.7 GB for the same text, a hidden size of 4,096 and bfloat16. The head makes the very same
logits of it again, at the cost of one matrix product. So a float model runs once, and is never in
memory beside a model that is compared with it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import Stream
from mlcalib.common.errors import named
from mlcalib.evaluation.perplexity import Scores, score
from mlcalib.models.loading import shared_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
