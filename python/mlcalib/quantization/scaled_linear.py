"""Linears with fixed codes whose scales can be trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.formats import with_dtype
from mlcalib.models import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FREE = (torch.float32, torch.bfloat16, torch.float16)


class ScaledLinear(nn.Module):
    """A linear whose codes are fixed and whose scales can be trained.

    Its weight is code by code what ``QuantizedLinear.dequantize`` returns, with each scale
    multiplied by exp(change). So one learning rate fits scales of all sizes, and none changes its
    sign. The weight is made anew when it is asked for: the module keeps codes only.

    Attributes:
        change: the logarithm of what scales are multiplied by, [out, groups] float32.
        rounded: whether the weight is made of scales as a checkpoint holds them.
        bias: of the linear, or None.
    """

    def __init__(
        self, own: nn.Linear, quantized: QuantizedLinear, change: nn.Parameter | None = None
    ) -> None:
        """Take the place of a linear.

        Args:
            own: the linear.
            quantized: its codes and grid, on its device.
            change: of another linear with the same weight, which is to stay the same; None for one
                of its own, which is 0.
        """
        super().__init__()
        self._quantized, self._dtype = quantized, own.weight.dtype
        self._size = quantized.grid.spec.group_size
        self.bias, self.rounded = own.bias, False
        start = torch.zeros_like(quantized.grid.scale)
        self.change = nn.Parameter(start) if change is None else change

    @property
    def weight(self) -> Tensor:
        """The weight [out, in], in the dtype of the linear's."""
        grid = self._quantized.grid
        plain = with_dtype(grid.spec, torch.float32)
        ones = Grid(torch.ones_like(grid.scale), grid.zero, plain)
        levels = _core.dequantize(self._quantized.codes, ones)
        scale = self.scale() if self.rounded else self._changed()
        if self._size != -1:
            scale = scale.repeat_interleave(self._size, 1)[:, : levels.shape[1]]
        return (levels.to(scale.dtype) * scale).to(self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of [..., in]."""
        return linear(x, self.weight, self.bias)

    def scale(self) -> Tensor:
        """Return the scales, [out, groups] float32, rounded to what a checkpoint holds."""
        return self._changed().detach().to(self._quantized.grid.spec.scale_dtype).float()

    def _changed(self) -> Tensor:
        return self._quantized.grid.scale.to(self.change.dtype) * self.change.exp()


def check_grids(specs: Mapping[str, GridSpec]) -> None:
    """Refuse grids whose scales cannot move freely.

    Raises:
        ValueError: names a linear, and what its scales are.
    """
    for name, spec in specs.items():
        if spec.super_block:
            held = f"multiples of one number for {spec.super_block} channels (super-blocks)"
        elif spec.scale_dtype not in _FREE:
            held = f"{str(spec.scale_dtype).removeprefix('torch.')} numbers, too few to move among"
        elif spec.per_tensor:
            held = "one number for all weights that are read together"
        else:
            continue
        raise ValueError(
            f"{name}: its scales are {held}, and cannot be tuned; quantize with scales of rows or "
            "groups in float32, bfloat16 or float16 (integers, NF4 or FP8 weights)."
        )


def with_scaled(
    model: "PreTrainedModel", adapter: Adapter, linears: Mapping[str, QuantizedLinear]
) -> dict[str, ScaledLinear]:
    """Put scaled linears into a model; linears that share a weight share its change."""
    found = {
        name: ScaledLinear(model.get_submodule(name), quantized)
        for name, quantized in linears.items()
    }
    for name, owner in adapter.places.items():
        if owner in found:
            shared = ScaledLinear(model.get_submodule(name), linears[owner], found[owner].change)
            found[name] = shared
    for name, scaled in found.items():
        model.set_submodule(name, scaled)
    return found
