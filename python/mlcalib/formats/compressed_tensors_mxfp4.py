"""compressed-tensors ``mxfp4-pack-quantized``: floats of 4 bits in groups of 32 (OCP MX 1.0).

Checked against compressed-tensors 0.20 (``compressors/mxfp4/base.py``, ``compressors/mx_utils.py``,
``compressors/nvfp4/helpers.py``) and vLLM (``schemes/compressed_tensors_w4a16_mxfp4.py``, by
``marlin_utils_fp4.py``, compute capability 8.0). Activations are not rounded. transformers gets
bfloat16 weights from it, whatever the model's dtype. Of a linear [out, in]:

=============  ==================  =====================================================
weight_packed  uint8 [out, in/2]   codes, the first of two in the low bits
weight_scale   uint8 [out, in/32]  exponents of two, with 127 added (E8M0)
=============  ==================  =====================================================
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.formats._config_groups import section_of, stated_weights
from mlcalib.formats._layout import by_grid, check_groups, describe, stored_scale, tensor
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import Facts, Verdict, Verdicts, of_folder
from mlcalib.formats.base import Shapes, formats
from mlcalib.formats.compressed_tensors import CompressedTensors

if TYPE_CHECKING:
    from mlcalib._core import Order


@formats.register
class CompressedTensorsMxfp4(CompressedTensors):
    """E2M1 floats in groups of 32 with a power of two each; all linears on this grid."""

    codes: ClassVar[str] = "weight_packed"
    numbers: ClassVar[tuple[str, ...]] = ("e2m1",)
    stored: ClassVar[str] = "packed (compressed-tensors, mxfp4-pack-quantized)"
    loading: ClassVar[str] = by_transformers("compressed-tensors", packed=False)
    dequantizes: ClassVar[bool] = True
    layout_name: ClassVar[str] = "mxfp4-pack-quantized"
    strategy: ClassVar[str] = "group"
    size: ClassVar[int] = 32
    scales: ClassVar[torch.dtype] = torch.float8_e8m0fnu
    scale_name: ClassVar[str] = "torch.uint8"
    kernels: ClassVar[str] = "by Marlin's FP4 kernels, compute capability 8.0"

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse other groups, and a shorter last one."""
        for spec, names in by_grid(specs):
            if spec.group_size != self.size:
                raise ValueError(
                    f"{self.layout_name} holds groups of {self.size}; given {describe(spec)} "
                    f"({names[0]}); pass group_size={self.size}"
                )
        check_groups(specs, shapes, whole_row=False)

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of scales, whatever the model's."""
        super().scale_dtype(model_dtype)
        return self.scales

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section: weights alone."""
        weights = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": self.strategy,
            "group_size": self.size,
            "dynamic": False,
            "observer": "minmax",
            "scale_dtype": self.scale_name,
            "zp_dtype": self.scale_name,
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": self.layout_name,
        }
        return section_of(self.layout_name, [group], ignore)

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return weight_packed and weight_scale."""
        grid, codes = quantized.grid, quantized.codes
        self.check_numbers({name: grid.spec})
        self.check({name: grid.spec}, {name: (codes.shape[0], codes.shape[1])})
        return {
            f"{name}.weight_packed": codes[:, ::2] | codes[:, 1::2] << 4,
            f"{name}.weight_scale": self.written_scale(stored_scale(name, grid)),
        }

    def written_scale(self, scale: Tensor) -> Tensor:
        """Return scales as the file has them: their bytes, since the file calls them uint8."""
        return scale.view(torch.uint8)

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        packed, groups = self.packed_of(name, tensors)
        scale = tensor(tensors, f"{name}.weight_scale", torch.uint8, groups)
        exact = scale.clone().view(torch.float8_e8m0fnu).float()
        return linear_of(packed, exact, spec)

    def packed_of(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, tuple[int, int]]:
        """Return weight_packed, and (out, groups).

        Raises:
            ValueError: it is no matrix of bytes whose groups are whole.
        """
        packed = tensors.get(f"{name}.weight_packed")
        if packed is None or packed.dim() != 2 or packed.dtype != torch.uint8:
            raise ValueError(f"the checkpoint has no matrix of bytes {name}.weight_packed")
        rows, half = packed.shape
        check_groups({name: GridSpec(4, self.size, True, numbers="e2m1")}, {name: (rows, 2 * half)})
        return packed, (rows, 2 * half // self.size)

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a section of mlcalib or llm-compressor."""
        wanted = (4, "float", self.strategy, self.size)
        for found in stated_weights(config, "num_bits", "type", "strategy", "group_size"):
            if found != wanted:
                raise CannotReadError(
                    f"expected {self.layout_name} weights {wanted} (bits, type, strategy, "
                    f"group_size) in quantization_config, found {found}"
                )
        spec = GridSpec(4, self.size, True, scale_dtype=self.scales, numbers="e2m1")
        return dict.fromkeys(linears, spec)

    def stored_shape(self, name: str, shapes: Shapes) -> tuple[int, int] | None:
        """Return (out, in)."""
        packed = shapes.get(f"{name}.weight_packed", ())
        return (packed[0], 2 * packed[1]) if len(packed) == 2 else None

    def reason_unpacked(self, config: Mapping[str, Any]) -> str:
        """Return that there is no kernel, or what else is quantized."""
        return super().reason_unpacked(config) or "there is no kernel for products of FP4 weights"

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; see the module's docstring for the rules."""
        needs = ["with compressed-tensors 0.18 or newer installed"]
        if facts.dtype not in (torch.bfloat16, None):
            needs.append("with dtype=torch.bfloat16, which it dequantizes FP4 to")
        return of_folder(
            facts,
            Verdict(True, tuple(needs)),
            Verdict(True, (self.kernels,)),
            Verdict(None, ("of its FP4 kernels mlcalib cannot tell",)),
        )


def linear_of(packed: Tensor, scale: Tensor, spec: GridSpec) -> QuantizedLinear:
    """Return the linear of packed codes and exact scales."""
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    return QuantizedLinear(codes, Grid(scale, torch.zeros_like(scale, dtype=torch.uint8), spec))
