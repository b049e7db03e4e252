"""compressed-tensors ``float-quantized`` with static activations: FP8, one scale per tensor.

Checked against compressed-tensors 0.20 (``compressors/naive_quantized/base.py``; the preset
``FP8``) and vLLM (``schemes/compressed_tensors_w8a8_fp8.py``, compute capability 8.9). Of a linear
[out, in]:

============  ========================  ========================================================
weight        float8_e4m3fn [out, in]   the codes' numbers
weight_scale  model dtype [1]           one for all linears that read the same input
input_scale   model dtype [1]           inputs are rounded to FP8 numbers times this, and clipped
                                        at 448 times this
============  ========================  ========================================================

vLLM fuses query, key and value, and gate and up, and keeps one scale for a fused weight: where they
differ it takes the largest and rounds all weights again (``requantize_with_max_scale`` in
``quantization/utils/w8a8_utils.py``). With one scale for all linears of an input nothing is rounded
twice. Of mixtures of experts it takes the largest ``input_scale`` of all experts of a layer; here
they have the same.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.formats._config_groups import stated_weights
from mlcalib.formats._layout import SCALE_DTYPES, stored_scale, with_dtype
from mlcalib.formats._static_inputs import (
    LARGEST,
    bound_of,
    positive_number,
    scale_up_to,
)
from mlcalib.formats.base import formats
from mlcalib.formats.compressed_tensors_fp8 import CompressedTensorsFp8

if TYPE_CHECKING:
    from mlcalib._core import Order


@formats.register
class CompressedTensorsFp8Static(CompressedTensorsFp8):
    """E4M3 floats with one scale per tensor, of weights and of activations."""

    per_tensor: ClassVar[bool | None] = True
    static_inputs: ClassVar[bool] = True
    stored: ClassVar[str] = "FP8 (compressed-tensors, float-quantized); W8A8, static ranges"

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section: weights and activations per tensor, both static."""
        section = super().quantization_config(specs, order, ignore)
        group = section["config_groups"]["group_0"]
        group["weights"]["strategy"] = "tensor"
        group["input_activations"] |= {
            "strategy": "tensor",
            "dynamic": False,
            "observer": "static_minmax",
        }
        return section

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return weight, weight_scale and input_scale."""
        grid = quantized.grid
        self.check_numbers({name: grid.spec})
        scales = stored_scale(name, grid)
        scale = scales[0]
        if (scales != scale).any():
            raise ValueError(f"{name}: its rows have several scales, expected the same in all")
        return {
            f"{name}.weight": quantized.codes.view(torch.float8_e4m3fn),
            f"{name}.weight_scale": scale.clone(),
            f"{name}.input_scale": scale_up_to(bound_of(name, quantized), scale.dtype),
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        weight = tensors.get(f"{name}.weight")
        if weight is None or weight.dim() != 2 or weight.dtype != torch.float8_e4m3fn:
            raise ValueError(f"the checkpoint has no matrix of FP8 numbers {name}.weight")
        if weight.float().isnan().any():
            raise ValueError(f"{name}.weight has NaN")
        value = positive_number(tensors, f"{name}.weight_scale")
        bound = positive_number(tensors, f"{name}.input_scale") * LARGEST
        scale = torch.full((len(weight), 1), value)
        zero = torch.zeros_like(scale, dtype=torch.uint8)
        own = with_dtype(spec, tensors[f"{name}.weight_scale"].dtype)  # other tools: float32
        return QuantizedLinear(weight.view(torch.uint8), Grid(scale, zero, own), input_bound=bound)

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a section of mlcalib or llm-compressor."""
        for found in stated_weights(config, "num_bits", "type", "strategy"):
            if found != (8, "float", "tensor"):
                raise CannotReadError(
                    "expected FP8 weights with one scale for each tensor in quantization_config, "
                    f"found {found}"
                )
        dtype = scale_dtype if scale_dtype in SCALE_DTYPES else torch.float32
        spec = GridSpec(8, -1, True, scale_dtype=dtype, numbers="e4m3", per_tensor=True)
        return dict.fromkeys(linears, spec)
