"""A copy of a model whose weights are made up and take no memory, to see how data flows in it."""

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STEPS = (1, 7, 61)
"""Strides of made-up weights, from the last dimension on: neighbouring rows overlap in memory."""


def synthetic(model: "PreTrainedModel", dtype: torch.dtype = torch.float64) -> "PreTrainedModel":
    """Copy a model's modules and give them weights that take almost no memory.

    A weight of [rows, channels] is a view of about 7 · rows + channels random numbers, so models of
    any size can be run for a few tokens. Weights that are one parameter in the model are one in the
    copy.

    Args:
        model: its weights may be on the meta device; its buffers may not.
        dtype: of the weights.
    """
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, nn.Parameter] = {
        id(parameter): nn.Parameter(_made_up(parameter, generator, dtype), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo).eval()


def on_meta(model: "PreTrainedModel") -> "PreTrainedModel":
    """Copy a model's modules, with parameters that hold no numbers."""
    memo: dict[int, nn.Parameter] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _made_up(like: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    shape = tuple(like.shape)
    if not like.is_floating_point():
        return torch.zeros((), dtype=like.dtype).expand(shape)
    if len(shape) < 2:  # of norms, which are near 1, and biases
        return 1 + 0.1 * torch.randn(shape, generator=generator, dtype=dtype)
    strides = tuple(_STEPS[min(axis, 2)] for axis in range(len(shape)))[::-1]
    size = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    scale = 1 / math.sqrt(max(shape[-1], 1))
    values = scale * torch.randn(max(size, 0), generator=generator, dtype=dtype)
    return values.as_strided(shape, strides)
