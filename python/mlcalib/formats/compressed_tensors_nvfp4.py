"""compressed-tensors ``nvfp4-pack-quantized``: floats of 4 bits in groups of 16, weights alone.

Checked against compressed-tensors 0.20 (``compressors/nvfp4/base.py``; ``generate_gparam`` in
``quantization/utils/helpers.py``) and vLLM (``schemes/compressed_tensors_w4a16_nvfp4.py``, by
``marlin_utils_fp4.py``, compute capability 7.5). Of a linear [out, in]:

===================  ========================  =================================================
weight_packed        uint8 [out, in/2]         codes, the first of two in the low bits
weight_scale         float8_e4m3fn [out,       scales times weight_global_scale
                     in/16]
weight_global_scale  float32 [1]               one for all linears that are solved together: vLLM
                                               takes that of the fused linear's parts for one
===================  ========================  =================================================
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.formats._layout import tensor
from mlcalib.formats.base import formats
from mlcalib.formats.compressed_tensors_mxfp4 import CompressedTensorsMxfp4, linear_of


@formats.register
class CompressedTensorsNvfp4(CompressedTensorsMxfp4):
    """E2M1 floats in groups of 16 with FP8 scales; the other parts are those of MXFP4."""

    stored: ClassVar[str] = "packed (compressed-tensors, nvfp4-pack-quantized)"
    layout_name: ClassVar[str] = "nvfp4-pack-quantized"
    strategy: ClassVar[str] = "tensor_group"
    size: ClassVar[int] = 16
    scales: ClassVar[torch.dtype] = torch.float8_e4m3fn
    scale_name: ClassVar[str] = "torch.float8_e4m3fn"
    kernels: ClassVar[str] = "by Marlin's FP4 kernels, compute capability 7.5"

    def written_scale(self, scale: Tensor) -> Tensor:
        """Return scales as the file has them."""
        return scale

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return weight_packed, weight_scale and weight_global_scale."""
        divisor = torch.tensor([quantized.grid.spec.global_scale], dtype=torch.float32)
        return {**super().pack(name, quantized), f"{name}.weight_global_scale": divisor}

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        packed, groups = self.packed_of(name, tensors)
        scale = tensor(tensors, f"{name}.weight_scale", torch.float8_e4m3fn, groups)
        divisor = tensor(tensors, f"{name}.weight_global_scale", torch.float32, (1,)).item()
        own = GridSpec(
            4, 16, True, scale_dtype=self.scales, numbers="e2m1", global_scale=float(divisor)
        )
        return linear_of(packed, scale.float() / divisor, own)
