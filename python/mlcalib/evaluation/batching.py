"""How many sequences are evaluated at once: on the CPU one, on a device as many as fit."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from mlcalib.models.device import free_memory, input_device, short_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_log = logging.getLogger(__name__)

ROWS = 1024
"""Rows of logits that are worked on at a time on a device."""
_TOKENS = 32768  # more at once fill no device better
_USED = 0.8  # of what is free: the rest is for what is not counted here
_FLOAT = 4


def bytes_per_token(model: "PreTrainedModel") -> int:
    """Return about how many bytes a token takes while a model runs without a cache.

    They are its logits, those of a reference or a copy, and the activations of one layer.
    """
    config = model.config.get_text_config(decoder=True)
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    numbers: int = 3 * config.vocab_size + 3 * wide + 12 * config.hidden_size
    return numbers * model.dtype.itemsize


def tokens_that_fit(model: "PreTrainedModel", most: int = _TOKENS) -> int:
    """Return how many tokens can run at once on a model's device, at most ``most``."""
    device = input_device(model)
    vocabulary: int = model.config.get_text_config(decoder=True).vocab_size
    left = int(_USED * free_memory(device)[0]) - 3 * ROWS * vocabulary * _FLOAT
    return max(1, min(most, left // bytes_per_token(model)))


class Batches:
    """Runs what takes a number of sequences at once, with fewer where memory is short."""

    def __init__(self) -> None:
        """Start without a limit but that of memory."""
        self._most: int | None = None

    def size(self, model: "PreTrainedModel", seq_len: int) -> int:
        """Return how many sequences of ``seq_len`` tokens run at once on a model's device."""
        if input_device(model).type == "cpu":
            return 1
        fitting = max(1, tokens_that_fit(model) // seq_len)
        return fitting if self._most is None else min(fitting, self._most)

    def run(self, model: "PreTrainedModel", seq_len: int, call: Callable[[int], T]) -> T:
        """Return ``call(size)``; where memory runs out, with half the size, which is said.

        Args:
            model: what runs.
            seq_len: tokens of a sequence.
            call: does all of the work, from its beginning.

        Raises:
            torch.OutOfMemoryError: a single sequence does not fit; says what takes less.
        """
        size = self.size(model, seq_len)
        while size > 1:
            try:
                return call(size)
            except torch.OutOfMemoryError:
                self._most = size // 2
            _log.warning("%d sequences at once do not fit into memory; now %d", size, self._most)
            size = self._most
        held = f"the model and one sequence of {seq_len:,} tokens"
        remedy = "a smaller seq_len (--seq-len), a quantized model, or --device cpu"
        with short_of_memory(input_device(model), held, remedy):
            return call(1)
