"""compressed-tensors ``int-quantized``, W8A8: int8 weights, and activations rounded while running.

Read by transformers, vLLM and SGLang. Checked against compressed-tensors 0.20
(``compressors/quantized_compressors/naive_quantized.py``) and vLLM (``compressed_tensors.py``,
``_is_dynamic_token_w8a8``; ``schemes/compressed_tensors_w8a8_int8.py``). Readers' kernels are
``cutlass_scaled_mm`` of vLLM's ``_custom_ops.py`` and ``int8_scaled_mm`` of SGLang. Of a linear
[out, in]:

============  =====================  ===============================================
weight        int8 [out, in]         codes less 128
weight_scale  model dtype [out, 1]   one for each row
============  =====================  ===============================================

Activations have a scale for each token, found while the model runs: nothing of it is stored.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.formats._config_groups import section_of, stated_weights
from mlcalib.formats._layout import check_zeros, describe, stored_scale, tensor
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import Facts, Verdict, Verdicts, of_folder
from mlcalib.formats.base import Shapes, formats
from mlcalib.formats.compressed_tensors import CompressedTensors

if TYPE_CHECKING:
    from mlcalib._core import Order


@formats.register
class CompressedTensorsInt8(CompressedTensors):
    """8 bits, symmetric, one scale for each row; the section's other parts are pack-quantized's."""

    codes: ClassVar[str] = "weight_scale"
    stored: ClassVar[str] = "int8 (compressed-tensors, int-quantized); W8A8"
    loading: ClassVar[str] = by_transformers("compressed-tensors", packed=False)

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse other grids."""
        for name, spec in specs.items():
            if (spec.bits, spec.group_size, spec.symmetric) != (8, -1, True):
                raise ValueError(
                    "compressed-tensors-int8 holds 8 bits, symmetric, with group_size -1; given "
                    f"{describe(spec)} ({name})"
                )

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section: weights per channel, activations per token while running."""
        common = {"num_bits": 8, "type": "int", "symmetric": True}
        group = {
            "targets": ["Linear"],
            "weights": {**common, "strategy": "channel", "dynamic": False, "observer": "minmax"},
            "input_activations": {**common, "strategy": "token", "dynamic": True, "observer": None},
            "output_activations": None,
            "format": "int-quantized",
        }
        return section_of("int-quantized", [group], ignore)

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return weight and weight_scale."""
        grid, codes = quantized.grid, quantized.codes
        self.check({name: grid.spec}, {name: (codes.shape[0], codes.shape[1])})
        check_zeros(name, grid)
        return {
            f"{name}.weight": (codes ^ 128).view(torch.int8),
            f"{name}.weight_scale": stored_scale(name, grid),
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        weight, scale = rows_of(name, tensors, torch.int8, spec)
        zero = torch.full(scale.shape, 128, dtype=torch.uint8)
        return QuantizedLinear(weight.view(torch.uint8) ^ 128, Grid(scale, zero, spec))

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a section of mlcalib or llm-compressor."""
        for found in stated_weights(config, "num_bits", "strategy", "symmetric"):
            if found != (8, "channel", True):
                raise CannotReadError(
                    "expected symmetric weights of 8 bits with a scale for each channel in "
                    f"quantization_config, found {found}"
                )
        return dict.fromkeys(linears, GridSpec(8, -1, True, scale_dtype=scale_dtype))

    def stored_shape(self, name: str, shapes: Shapes) -> None:
        """Return None: ``weight`` itself has the shape."""

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; see the module's docstring for the kernels."""
        odd = [name for name, shape in facts.shapes.items() if shape[0] % 16 or shape[1] % 16]
        want = f"its int8 kernels want channels in multiples of 16, unlike {odd[0]}" if odd else ""
        return of_folder(
            facts,
            Verdict(True, ("with compressed-tensors installed",)),
            Verdict(True, (f"by a slower Triton kernel: {want}",) if odd else ()),
            Verdict(not odd, (want,) if odd else ()),
        )


def rows_of(
    name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, spec: GridSpec
) -> tuple[Tensor, Tensor]:
    """Return weight [out, in] and weight_scale, float32 [out, 1].

    Raises:
        ValueError: one of them is missing, or has another shape or dtype.
    """
    weight = tensors.get(f"{name}.weight")
    if weight is None or weight.dim() != 2:
        raise ValueError(f"the checkpoint has no matrix {name}.weight")
    rows, columns = weight.shape
    tensor(tensors, f"{name}.weight", dtype, (rows, columns))
    scale = tensor(tensors, f"{name}.weight_scale", spec.scale_dtype, (rows, 1))
    return weight, scale.float()
