"""LLM.int8() (arXiv 2208.07339): linears multiply 8-bit numbers, but for channels with outliers.

What bitsandbytes (0.50) computes on a GPU when transformers loads a model with
``load_in_8bit=True`` (``int8_vectorwise_quant`` and ``int8_mixed_scaled_mm`` in its
``backends/default/ops.py``): weights are rounded to int8 with a scale for each row, tokens to int8
with a scale for each token. Input channels in which a value of the text reaches the threshold are
left out of that, and multiply dequantized weights unrounded. The products here are sums of
dequantized numbers in the model's dtype, where bitsandbytes has int32 and then float16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

THRESHOLD = 6.0
"""The magnitude from which a value is an outlier, as in the paper and in transformers."""

_LARGEST = 127.0


@dataclass(frozen=True)
class LLMInt8:
    """A float model that runs with LLM.int8(), which is chosen when it is loaded.

    ``mlcalib.evaluate(["MODEL", mlcalib.LLMInt8("MODEL")])`` takes it as a model.

    Attributes:
        model: a folder, a hub name or a GGUF file.
        threshold: the magnitude from which a value is an outlier; 0 for no outliers.

    Raises:
        ValueError: the threshold is negative.
    """

    model: str | Path
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        """Check the threshold."""
        if not self.threshold >= 0:
            raise ValueError(f"threshold is {self.threshold}, expected 0 (no outliers) or more.")


@dataclass
class Outliers:
    """How often the input channels of a linear had outliers.

    Attributes:
        sequences: that were looked at.
        channels: int64 [in], in how many of them a channel had one.
    """

    channels: Tensor
    sequences: int = 0


class Int8Linear(nn.Module):
    """A linear in LLM.int8(); see the module. For inference.

    Attributes:
        weight: int8 [out, in].
        scale: float32 [out, 1], what a code of a row is multiplied with.
        bias: [out], or None.
        threshold: see ``LLMInt8``.
        outliers: where they are counted while ``counted_outliers`` runs.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, threshold: float) -> None:
        """Round the weight of a linear."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.threshold = threshold
        codes, scale = _rounded(linear.weight.detach().float())
        self.register_buffer("weight", codes.to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.outliers: Outliers | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of x [..., tokens, in], in x's dtype."""
        reach = torch.zeros_like(x, dtype=torch.bool)
        if self.threshold > 0:
            reach = x.abs() >= self.threshold
        apart = reach.any(-2, keepdim=True)  # channels, of each sequence by itself
        codes, scale = _rounded(x.float().masked_fill(reach, 0))
        mixed = torch.where(apart, x, (codes * scale).to(x.dtype))
        if self.outliers is not None:
            found = apart.reshape(-1, self.in_features)
            self.outliers.sequences += len(found)
            self.outliers.channels += found.sum(0).to(self.outliers.channels)
        return functional.linear(mixed, (self.weight * self.scale).to(x.dtype), self.bias)


def run_in_int8(model: "PreTrainedModel", threshold: float = THRESHOLD) -> "PreTrainedModel":
    """Replace the linears of a model, all but its output head, by ``Int8Linear``.

    Args:
        model: is changed; experts that a model holds as one tensor stay in floating point.
        threshold: see ``LLMInt8``.

    Raises:
        ValueError: the model has no such linear.
    """
    linears = _linears(model)
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linears that LLM.int8() would change")
    for name, module in linears.items():
        model.set_submodule(name, Int8Linear(module, threshold))
    return model


def int8_bits_per_weight(model: "PreTrainedModel") -> float:
    """Return what a weight of ``run_in_int8`` takes: 8 bits, and its share of a row's scale."""
    linears = _linears(model).values()
    weights = sum(module.weight.numel() for module in linears)
    rows = sum(module.out_features for module in linears)
    return 8 + 32 * rows / weights


def _linears(model: "PreTrainedModel") -> dict[str, nn.Linear]:
    """Return the linears that run in 8 bits: all but the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


@contextmanager
def counted_outliers(model: nn.Module) -> Iterator[dict[str, Outliers]]:
    """Count outliers in the inputs of all ``Int8Linear`` of a model, by their names."""
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)
    }
    found = {
        name: Outliers(torch.zeros(linear.in_features, dtype=torch.int64))
        for name, linear in linears.items()
    }
    try:
        for name, linear in linears.items():
            linear.outliers = found[name]
        yield found
    finally:
        for linear in linears.values():
            linear.outliers = None


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes from -127 to 127, as floats, and the scale of each row [..., 1]."""
    largest = rows.abs().amax(-1, keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    return (rows * (_LARGEST / largest)).round(), largest / _LARGEST
