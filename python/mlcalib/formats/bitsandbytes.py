"""bitsandbytes' 4 bits, NF4: read by transformers with bitsandbytes, on CPUs too.

Checked against bitsandbytes 0.50 (``functional.py``, ``QuantState``; ``backends/default/ops.py``,
``quantize_4bit``; ``nn/modules.py``, ``Params4bit.from_prequantized``) and transformers 5.24
(``quantizers/quantizer_bnb_4bit.py``, ``integrations/bitsandbytes.py``). Of a linear [out, in], in
blocks of b consecutive input channels, n = out · in:

=====================================  ==================  =======================================
weight                                 uint8 [n/2, 1]      codes, row by row, the first of two in
                                                           the high bits
weight.absmax                          float32 [n/b]       scales, row by row
weight.quant_map                       float32 [16]        the numbers of NormalFloat
weight.quant_state.bitsandbytes__nf4   uint8               JSON: blocksize, dtype, shape, …
=====================================  ==================  =======================================

Where scales were quantized to 8 bits themselves (double quantization), the format is
``bitsandbytes-double``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.common.json_text import loads
from mlcalib.formats._layout import (
    by_grid,
    check_groups,
    describe,
    stored_scale,
    tensor,
    with_dtype,
)
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import Facts, Verdict, Verdicts, of_folder
from mlcalib.formats._section import Problem, check_keys
from mlcalib.formats.base import Format, Shapes, formats

if TYPE_CHECKING:
    from mlcalib._core import Order

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STATE = "weight.quant_state.bitsandbytes__nf4"
_KEYS = {
    "quant_method", "_load_in_4bit", "_load_in_8bit", "load_in_4bit", "load_in_8bit",
    "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules", "llm_int8_threshold",
}  # fmt: skip


@formats.register
class BitsAndBytes(Format):
    """NF4, in one block size of bitsandbytes that divides the input channels."""

    codes: ClassVar[str] = "weight.absmax"
    numbers: ClassVar[tuple[str, ...]] = ("nf4",)
    stored: ClassVar[str] = "packed (bitsandbytes, NF4)"
    loading: ClassVar[str] = by_transformers("bitsandbytes", "accelerate", packed=False)
    dequantizes: ClassVar[bool] = True
    float32_scales: ClassVar[bool] = True

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Format:
        """See ``Format.of_config``; double quantization has a format of its own.

        Raises:
            CannotReadError: other weights than NF4.
        """
        kind = config.get("bnb_4bit_quant_type", "fp4")
        if not (config.get("load_in_4bit") or config.get("_load_in_4bit")) or kind != "nf4":
            found = f"4 bits of kind {kind!r}" if config.get("load_in_4bit") else "8 bits"
            raise CannotReadError(f"bitsandbytes weights of {found} cannot be read; expected nf4")
        double = config.get("bnb_4bit_use_double_quant")
        return formats.get("bitsandbytes-double")() if double else cls()

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse block sizes that bitsandbytes does not have, and blocks that cross rows."""
        for spec, names in by_grid(specs):
            if spec.group_size not in BLOCK_SIZES:
                sizes = ", ".join(map(str, BLOCK_SIZES))
                raise ValueError(
                    f"bitsandbytes holds NF4 in blocks of {sizes}; given {describe(spec)} "
                    f"({names[0]})"
                )
        check_groups(specs, shapes, whole_row=False)

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section; block sizes stand with the weights."""
        dtype = next(iter(specs.values())).scale_dtype
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "llm_int8_skip_modules": ignore,
        }

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return the weight and what belongs to it; scales are in the model's dtype, exactly."""
        grid, codes = quantized.grid, quantized.codes
        spec, shape = grid.spec, tuple(codes.shape)
        self.check_numbers({name: spec})
        self.check({name: spec}, {name: (shape[0], shape[1])})
        state = {
            "quant_type": "nf4",
            "blocksize": spec.group_size,
            "dtype": str(spec.scale_dtype).removeprefix("torch."),
            "shape": shape,
        }
        pairs = codes.view(-1, 2)
        return {
            f"{name}.weight": (pairs[:, :1] << 4 | pairs[:, 1:]).contiguous(),
            f"{name}.weight.absmax": stored_scale(name, grid).float().flatten(),
            f"{name}.weight.quant_map": _numbers(),
            f"{name}.{STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid; the scale dtype is float32 where the model's does not hold scales.

        Raises:
            CannotReadError: blocks that cross rows.
        """
        rows, columns, size, state = state_of(name, tensors)
        groups = rows * columns // size
        packed = tensor(tensors, f"{name}.weight", torch.uint8, (rows * columns // 2, 1))
        numbers = tensor(tensors, f"{name}.weight.quant_map", torch.float32, (16,))
        if not torch.equal(numbers, _numbers()):
            raise CannotReadError(f"{name}.weight.quant_map has other numbers than NormalFloat's")
        if "nested_blocksize" in state:
            scale = _nested(name, tensors, groups, state)
        else:
            scale = tensor(tensors, f"{name}.weight.absmax", torch.float32, (groups,))
        codes = torch.cat([packed >> 4, packed & 15], dim=1).view(rows, columns)
        scale = scale.view(rows, -1).clone()
        exact = torch.equal(scale.to(spec.scale_dtype).float(), scale)
        own = GridSpec(4, size, True, scale_dtype=spec.scale_dtype, numbers="nf4")
        own = own if exact else with_dtype(own, torch.float32)
        return QuantizedLinear(codes, Grid(scale, torch.zeros_like(scale, dtype=torch.uint8), own))

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return NF4 in blocks of 64; what block size it is, a linear's own tensors say."""
        spec = GridSpec(4, 64, True, scale_dtype=scale_dtype, numbers="nf4")
        return dict.fromkeys(linears, spec)

    def check_section(self, config: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield keys that transformers does not know."""
        yield from check_keys(config, _KEYS)

    def stored_shape(self, name: str, shapes: Shapes) -> tuple[int, int] | None:
        """Return (-1, -1): the shape stands in a tensor."""
        return (-1, -1) if f"{name}.weight.absmax" in shapes else None

    def reason_unpacked(self, config: Mapping[str, Any]) -> str:
        """Return that there is no kernel."""
        return "there is no kernel for products of packed NF4 weights"

    def left_out(self, config: Mapping[str, Any]) -> list[str]:
        """Return the linears that the section names."""
        return list(config.get("llm_int8_skip_modules") or [])

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; of vLLM's and SGLang's loaders no rules are restated here."""
        unknown = Verdict(None, ("of its bitsandbytes loader mlcalib cannot tell",))
        needs = Verdict(True, ("with bitsandbytes and accelerate installed",))
        return of_folder(facts, needs, unknown, unknown)


def _numbers() -> Tensor:
    """Return the numbers of all codes, float32 [16]."""
    spec = GridSpec(4, -1, True, numbers="nf4")
    scale = torch.ones(1, 1, dtype=torch.float32)  # whatever the default dtype is
    one = Grid(scale, torch.zeros(1, 1, dtype=torch.uint8), spec)
    return _core.dequantize(torch.arange(16, dtype=torch.uint8)[None], one)[0]


def state_of(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, int, int, dict[str, Any]]:
    """Return (out, in), the block size, and all that is said of a weight.

    Raises:
        ValueError: it says nothing that can be.
        CannotReadError: blocks that cross rows.
    """
    raw = tensors.get(f"{name}.{STATE}")
    if raw is None or raw.dtype != torch.uint8 or raw.dim() != 1:
        raise ValueError(f"the checkpoint has no bytes {name}.{STATE}")
    try:
        state = loads(bytes(raw.tolist()).decode())
        size = state["blocksize"]
        rows, columns = state["shape"]
        if not all(type(each) is int and each > 0 for each in (size, rows, columns)):
            raise ValueError("sizes are not whole numbers")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name}.{STATE} does not say blocksize and shape ({type(error).__name__}: {error})"
        ) from error
    if columns % size or columns % 2:
        raise CannotReadError(
            f"{name}: blocks of {size} do not divide its {columns} input channels, so that they "
            "cross rows, which mlcalib's grids cannot hold"
        )
    return rows, columns, size, state


def _nested(
    name: str, tensors: Mapping[str, Tensor], groups: int, state: Mapping[str, Any]
) -> Tensor:
    """Return scales that were quantized themselves, float32 [groups]."""
    size, offset = int(state["nested_blocksize"]), float(state["nested_offset"])
    codes = tensor(tensors, f"{name}.weight.absmax", torch.uint8, (groups,))
    numbers = tensor(tensors, f"{name}.weight.nested_quant_map", torch.float32, (256,))
    blocks = (-(-groups // size),)
    scale = tensor(tensors, f"{name}.weight.nested_absmax", torch.float32, blocks)
    return numbers[codes.long()] * scale.repeat_interleave(size)[:groups] + offset
