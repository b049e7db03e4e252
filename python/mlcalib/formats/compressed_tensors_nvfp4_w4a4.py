"""compressed-tensors ``nvfp4-pack-quantized`` with FP4 activations: both in groups of 16.

Checked against compressed-tensors 0.20 (``compressors/nvfp4/base.py``; the preset ``NVFP4``;
``compute_dynamic_scales_and_zp`` in ``quantization/utils/helpers.py``) and vLLM
(``schemes/compressed_tensors_w4a4_nvfp4.py``, compute capability 10.0). Beside the tensors of
weights alone, of a linear:

==================  ===========  ==================================================================
input_global_scale  float32 [1]  what scales of groups of its input are multiplied by before they
                                 are rounded to FP8: 448 · 6 / the largest magnitude that is held
==================  ===========  ==================================================================

Groups of an input get their scales while the model runs. vLLM takes the largest
``input_global_scale`` of a fused linear's parts; here linears of one input have the same.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear, dequantize, fit_grid
from mlcalib._core import quantize as to_codes
from mlcalib.formats._static_inputs import LARGEST, bound_of, positive_number
from mlcalib.formats.base import formats
from mlcalib.formats.compressed_tensors_nvfp4 import CompressedTensorsNvfp4

if TYPE_CHECKING:
    from mlcalib._core import Order

_LARGEST_FP4 = 6.0


@formats.register
class CompressedTensorsNvfp4W4A4(CompressedTensorsNvfp4):
    """NVFP4 weights, and inputs that are rounded to the same kind of grid while running."""

    static_inputs: ClassVar[bool] = True
    stored: ClassVar[str] = "packed (compressed-tensors, nvfp4-pack-quantized); W4A4"
    kernels: ClassVar[str] = (
        "by FP4 kernels, compute capability 10.0; below that by Marlin's, weights alone"
    )

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section: weights, and activations whose groups are scaled while running."""
        section = super().quantization_config(specs, order, ignore)
        group = section["config_groups"]["group_0"]
        group["input_activations"] = {
            **group["weights"],
            "dynamic": "local",
            "observer": "static_minmax",
        }
        return section

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return the tensors of the weight, and input_global_scale."""
        factor = torch.tensor([LARGEST * _LARGEST_FP4 / bound_of(name, quantized)])
        return {**super().pack(name, quantized), f"{name}.input_global_scale": factor}

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        factor = positive_number(tensors, f"{name}.input_global_scale")
        bound = LARGEST * _LARGEST_FP4 / factor
        return super().unpack(name, tensors, spec).replaced(input_bound=bound)

    def input_rounding(
        self, name: str, tensors: Mapping[str, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """Return the rounding of an input [..., in] to NVFP4, in float32 as in vLLM's kernel.

        compressed-tensors divides the extreme of a group by 6 in the model's dtype, which moves
        some of the scales to the next FP8 number.
        """
        factor = positive_number(tensors, f"{name}.input_global_scale")
        spec = GridSpec(
            4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1", global_scale=factor
        )

        def rounded(x: Tensor) -> Tensor:
            rows = x.flatten(0, -2)
            if not len(rows):  # of an expert
                return x
            grid: Grid = fit_grid(rows, spec)
            return dequantize(to_codes(rows, grid), grid).to(x.dtype).view(x.shape)

        return rounded
