"""Greedy generation in batches, from which texts that have ended are removed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from mlcalib.common import compat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ENDED = 0.25
"""The share of a batch's texts that must have ended before they are removed from it."""
_LOOKED_BACK = 2
"""Tokens beyond those of a stop sequence among which it is looked for, as lm-eval does: a model may
write it in other tokens."""
_ROOM = 1.25
"""What a cache that is full grows by."""


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Tensor,
    mask: Tensor,
    *,
    stop: Sequence[str],
    max_length: int,
) -> Tensor:
    """Generate greedily as ``model.generate`` does, without continuing texts that have ended.

    ``model.generate`` computes all rows until the last one has ended. With texts of very different
    lengths this is most of its time. Here rows that have ended are removed from the batch, and the
    others continue with their cache.

    Args:
        model: a transformers model whose cache is that of attention.
        tokenizer: its tokenizer, with a padding token.
        ids: [rows, tokens] int64, prompts padded on the left.
        mask: [rows, tokens], 0 where a prompt is padded.
        stop: a text ends after one of these, or the model's end of sequence.
        max_length: tokens of the longest result, prompt included.

    Returns:
        [rows, tokens] int64: prompts and what follows them, padded on the right.
    """
    prompt = ids.shape[1]
    found = torch.full((len(ids), max_length), tokenizer.pad_token_id, device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)
    cache = compat.cache_of(_RoomyLayer)
    while len(rows):
        ended = _Ended(model, tokenizer, stop, prompt, len(ids))
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList([ended]),
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            do_sample=False,
            **{compat.cache_name(): cache},
        )
        found[rows, : ids.shape[1]] = ids
        if ids.shape[1] >= max_length:
            break
        left = (~ended.rows).nonzero().flatten()
        rows, ids = rows[left], ids[left]
        mask = torch.cat([mask[left], mask.new_ones(len(left), ids.shape[1] - mask.shape[1])], 1)
        cache.batch_select_indices(left)
    return found


class _RoomyLayer(compat.cache_layer()):  # type: ignore[misc]  # transformers' own is not typed
    """A layer's cache with room for tokens to come: a token is written, and not all copied."""

    _room: tuple[Tensor, Tensor] | None = None  # keys and values, longer than what is held

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if not length:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        if self._room is None or end > self._room[0].shape[-2]:
            self._room = _larger(self.keys, end), _larger(self.values, end)
        keys, values = self._room
        keys[..., length:end, :], values[..., length:end, :] = key_states, value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None


def _larger(held: Tensor, tokens: int) -> Tensor:
    room = held.new_empty(*held.shape[:-2], int(_ROOM * tokens) + 1, held.shape[-1])
    room[..., : held.shape[-2], :] = held
    return room


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Which rows have ended; once enough have, generation stops for all.

    Attributes:
        rows: [rows] bool, those that have ended.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        stop: Sequence[str],
        prompt: int,
        rows: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._last = {
            text: len(tokenizer.encode(text, add_special_tokens=False)) + _LOOKED_BACK
            for text in stop
        }
        eos = getattr(model.generation_config, "eos_token_id", None)
        self._eos = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
        self.rows = torch.zeros(rows, dtype=torch.bool, device=model.device)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        for row in (~self.rows).nonzero().flatten().tolist():
            self.rows[row] = self._has_ended(input_ids[row, self._prompt :].tolist())
        if self.rows.float().mean() >= _ENDED:
            return torch.ones_like(self.rows)
        return self.rows.clone()

    def _has_ended(self, written: list[int]) -> bool:
        return written[-1] in self._eos or any(
            text in self._tokenizer.decode(written[-last:]) for text, last in self._last.items()
        )
