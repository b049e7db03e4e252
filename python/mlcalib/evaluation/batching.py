"""How many sequences are evaluated at once: on the CPU one, on a device as many as fit."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from mlcalib.models.device import free_memory, input_device, short_of_memory
from mlcalib.models.loading import check_dtype, check_source, skeleton

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
    return numbers * int(model.dtype.itemsize)


def tokens_that_fit(
    model: "PreTrainedModel", device: torch.device, most: int = _TOKENS, *, held: int = 0
) -> int:
    """Return how many tokens can run at once on a device, at most ``most``.

    Args:
        model: its config and dtype are read.
        device: where it runs.
        most: tokens.
        held: bytes of what is free that something else will take: a model that is not there yet.
    """
    vocabulary: int = model.config.get_text_config(decoder=True).vocab_size
    left = int(_USED * (free_memory(device)[0] - held)) - 3 * ROWS * vocabulary * _FLOAT
    return max(1, min(most, left // bytes_per_token(model)))


def plan_evaluation(source: str, dtype: str, device: torch.device, seq_len: int) -> str:
    """Return in a line what evaluating a model takes on a device, in GB; no weight is read.

    Args:
        source: a folder, a hub name or a GGUF file.
        dtype: in which it is evaluated; ``auto`` is its own.
        device: where it runs.
        seq_len: the context for perplexity.

    Raises:
        FileNotFoundError, ValueError: see ``check_source``.
    """
    check_source(source)
    check_dtype(dtype)
    model = skeleton(source, None if dtype == "auto" else getattr(torch, dtype))
    weights = sum(each.numel() for each in model.parameters()) * model.dtype.itemsize
    stored = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))
    if device.type == "cpu" and stored:
        weights = min(weights, stored)  # codes stay packed
    count = 1
    if device.type != "cpu":
        count = max(1, tokens_that_fit(model, device, held=weights) // seq_len)
    at_once = count * seq_len * bytes_per_token(model)
    free = free_memory(device)[0]
    return (
        f"{source} on {device} ({free / 1e9:.2f} GB free): weights {weights / 1e9:.3f} GB; "
        f"{count} sequences of {seq_len} tokens at once, about {at_once / 1e9:.3f} GB"
    )


class Batches:
    """Runs what takes a number of sequences at once, with fewer where memory is short."""

    def __init__(self) -> None:
        """Start without a limit but that of memory."""
        self._most: int | None = None

    def size(self, model: "PreTrainedModel", seq_len: int) -> int:
        """Return how many sequences of ``seq_len`` tokens run at once on a model's device."""
        if (device := input_device(model)).type == "cpu":
            return 1
        fitting = max(1, tokens_that_fit(model, device) // seq_len)
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
