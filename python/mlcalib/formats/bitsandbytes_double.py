"""bitsandbytes' NF4 whose scales are quantized to 8 bits themselves: double quantization.

Checked against bitsandbytes 0.50 (``functional.py``, ``quantize_4bit`` with
``compress_statistics``, ``quantize_blockwise``) and transformers 5.24
(``bnb_4bit_use_double_quant``). What differs from ``bitsandbytes``, with g = n/b scales s of a
linear and their mean o:

=====================================  ==================  =======================================
weight.absmax                          uint8 [g]           codes of s - o, row by row
weight.nested_absmax                   float32 [g/256]     largest magnitude of 256 of s - o
weight.nested_quant_map                float32 [256]       the numbers of these codes, rising
weight.quant_state.bitsandbytes__nf4   uint8               also: nested_blocksize, nested_dtype and
                                                           nested_offset, which is o
=====================================  ==================  =======================================

A scale is number · nested_absmax + o, in float32. Grids hold these products and sums, and codes and
nested_absmax are found again from them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.formats.base import formats
from mlcalib.formats.bitsandbytes import STATE, BitsAndBytes, state_of

if TYPE_CHECKING:
    from mlcalib._core import Order

_BLOCK = 256
_SMALLEST = 2.0**-126  # of a block of equal scales


@formats.register
class BitsAndBytesDouble(BitsAndBytes):
    """NF4 with double quantization; the other parts are those of ``bitsandbytes``."""

    stored: ClassVar[str] = "packed (bitsandbytes, NF4 with double quantization)"
    float32_scales: ClassVar[bool] = False

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return uint8, whatever the model's dtype.

        Raises:
            ValueError: the model's dtype is not float32, bfloat16 or float16.
        """
        super().scale_dtype(model_dtype)
        return torch.uint8

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section; readers compute in the dtype of the activations."""
        section = super().quantization_config(specs, order, ignore)
        return section | {"bnb_4bit_compute_dtype": "float32", "bnb_4bit_use_double_quant": True}

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return the weight and what belongs to it.

        Raises:
            ValueError: scales are not what such blocks hold.
        """
        packed = super().pack(name, quantized)
        offset = quantized.grid.spec.global_scale
        codes, largest = _nested(name, quantized.grid.scale.flatten(), offset)
        state = json.loads(bytes(packed[f"{name}.{STATE}"].tolist())) | {
            "dtype": "float32",
            "nested_blocksize": _BLOCK,
            "nested_dtype": "float32",
            "nested_offset": offset,
        }
        return packed | {
            f"{name}.weight.absmax": codes,
            f"{name}.weight.nested_absmax": largest,
            f"{name}.weight.nested_quant_map": _core.nested_numbers(),
            f"{name}.{STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed.

        Scales that another tool quantized in other blocks or to other numbers are float32.
        """
        linear = super().unpack(name, tensors, spec)
        _, _, size, state = state_of(name, tensors)
        numbers = tensors.get(f"{name}.weight.nested_quant_map")
        offset = float(state.get("nested_offset", 0))
        alike = numbers is not None and torch.equal(numbers, _core.nested_numbers())
        if not alike or state.get("nested_blocksize") != _BLOCK or offset <= 0:
            return linear
        own = GridSpec(4, size, True, scale_dtype=torch.uint8, numbers="nf4", global_scale=offset)
        return linear.replaced(grid=Grid(linear.grid.scale, linear.grid.zero, own))


def _nested(name: str, scale: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Return the codes, uint8 [scales], and magnitudes, float32 [blocks], that give the scales."""
    codes, magnitudes = [], []
    for block in torch.split(scale, _BLOCK):
        found = next(_exact(block, offset), None)
        if found is None:
            raise ValueError(
                f"{name}: scales are no sums of an offset and multiples of 256 numbers; fit the "
                "grid with scale_dtype=torch.uint8"
            )
        codes.append(found[0])
        magnitudes.append(found[1])
    return torch.cat(codes), torch.stack(magnitudes)


def _exact(scale: Tensor, offset: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield codes and magnitudes of a block that give its scales, as bitsandbytes' own first."""
    numbers = _core.nested_numbers()
    left = scale - offset
    top = left[left.abs().argmax()]
    for number in (1.0, numbers[-2]) if top >= 0 else (numbers[0],):
        codes = _nearest(left / (top / number).clamp(min=_SMALLEST), numbers)
        for magnitude in _magnitudes(scale, numbers[codes], offset, bool(top >= 0)):
            if torch.equal(numbers[codes] * magnitude + offset, scale):
                yield codes.to(torch.uint8), magnitude


def _magnitudes(scale: Tensor, numbers: Tensor, offset: float, positive: bool) -> Iterator[Tensor]:
    """Yield magnitudes of a block whose multiples, with the offset, may round to its scales.

    First those that are the difference of the offset and a number in the weights' dtype, which the
    largest weight of a group was.
    """
    some = numbers != 0
    if not some.any():
        yield torch.tensor(_SMALLEST)
        return
    exact, factor = scale[some].double(), numbers[some].double()
    half = (torch.nextafter(scale[some], torch.tensor(math.inf)).double() - exact) / 2
    ends = torch.stack([(exact - half - offset) / factor, (exact + half - offset) / factor])
    low, high = float(ends.amin(0).max()), float(ends.amax(0).min())
    middle = torch.tensor((low + high) / 2, dtype=torch.float64)
    largest = offset + (middle if positive else -middle)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield (largest.to(dtype).float() - offset).abs()
    yield from torch.linspace(low, high, 65, dtype=torch.float64).clamp(min=_SMALLEST).float()


def _nearest(x: Tensor, numbers: Tensor) -> Tensor:
    """Return the index of the number nearest to each x."""
    return torch.bucketize(x, (numbers[1:] + numbers[:-1]) / 2)
