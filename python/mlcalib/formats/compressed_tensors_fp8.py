"""compressed-tensors ``float-quantized``: FP8 weights, and activations rounded while running.

Checked against compressed-tensors 0.20 (``compressors/naive_quantized/base.py``; the preset
``FP8_DYNAMIC``) and vLLM (``schemes/compressed_tensors_w8a8_fp8.py``, compute capability 8.9; below
that ``schemes/compressed_tensors_w8a16_fp8.py``, by Marlin, 7.5). Of a linear [out, in]:

============  ========================  ==================
weight        float8_e4m3fn [out, in]   the codes' numbers
weight_scale  model dtype [out, 1]      one for each row
============  ========================  ==================

Activations have a scale for each token, found while the model runs: nothing of it is stored.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.formats._config_groups import stated_weights
from mlcalib.formats._layout import describe, stored_scale
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import Facts, Verdict, Verdicts, of_folder
from mlcalib.formats.base import formats
from mlcalib.formats.compressed_tensors_int8 import CompressedTensorsInt8, rows_of

if TYPE_CHECKING:
    from mlcalib._core import Order


@formats.register
class CompressedTensorsFp8(CompressedTensorsInt8):
    """E4M3 floats with one scale for each row; the section's other parts are those of int8."""

    numbers: ClassVar[tuple[str, ...]] = ("e4m3",)
    stored: ClassVar[str] = "FP8 (compressed-tensors, float-quantized); W8A8"
    loading: ClassVar[str] = by_transformers("compressed-tensors", packed=False)

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse groups."""
        for name, spec in specs.items():
            if spec.group_size != -1:
                raise ValueError(
                    "compressed-tensors-fp8 holds FP8 numbers with group_size -1; given "
                    f"{describe(spec)} ({name})"
                )

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section: weights per channel, activations per token while running."""
        section = super().quantization_config(specs, order, ignore)
        section["format"] = "float-quantized"
        group = section["config_groups"]["group_0"]
        group["format"] = "float-quantized"
        group["weights"]["type"] = group["input_activations"]["type"] = "float"
        return section

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return weight and weight_scale."""
        grid, codes = quantized.grid, quantized.codes
        self.check_numbers({name: grid.spec})
        self.check({name: grid.spec}, {name: (codes.shape[0], codes.shape[1])})
        return {
            f"{name}.weight": codes.view(torch.float8_e4m3fn),
            f"{name}.weight_scale": stored_scale(name, grid),
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        weight, scale = rows_of(name, tensors, torch.float8_e4m3fn, spec)
        if weight.float().isnan().any():
            raise ValueError(f"{name}.weight has NaN")
        zero = torch.zeros_like(scale, dtype=torch.uint8)
        return QuantizedLinear(weight.view(torch.uint8), Grid(scale, zero, spec))

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a section of mlcalib or llm-compressor."""
        for found in stated_weights(config, "num_bits", "type", "strategy"):
            if found != (8, "float", "channel"):
                raise CannotReadError(
                    "expected FP8 weights with a scale for each channel in quantization_config, "
                    f"found {found}"
                )
        spec = GridSpec(8, -1, True, scale_dtype=scale_dtype, numbers="e4m3")
        return dict.fromkeys(linears, spec)

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; see the module's docstring for the kernels."""
        slower = "by FP8 kernels from compute capability 8.9 on; weights alone below that"
        return of_folder(
            facts,
            Verdict(True, ("with compressed-tensors installed",)),
            Verdict(True, (slower,)),
            Verdict(None, ("of its FP8 kernels mlcalib cannot tell",)),
        )
