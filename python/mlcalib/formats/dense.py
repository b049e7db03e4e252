"""Dequantized weights in the model's dtype: any tool reads it, nothing is smaller."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import Facts, Verdicts, ordinary
from mlcalib.formats.base import Format, formats

if TYPE_CHECKING:
    from mlcalib._core import Order


@formats.register
class Dense(Format):
    """What a reader of a packed checkpoint computes, written out.

    Scales are rounded to the model's dtype and each weight once more, as compressed-tensors readers
    do, so that both formats give the same model bit for bit.
    """

    super_blocks: ClassVar[bool] = True
    per_tensor: ClassVar[bool | None] = None
    numbers: ClassVar[tuple[str, ...]] = ("integer", "nf4", "e2m1", "e4m3")
    stored: ClassVar[str] = "dequantized: nothing is smaller than in the base model"
    loading: ClassVar[str] = by_transformers(packed=False)

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Accept every grid."""

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> None:
        """Return None: the checkpoint is an ordinary one."""

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return what readers make of an ordinary checkpoint."""
        return ordinary()

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return ``name.weight`` [out, in] in the grid's scale dtype."""
        weight = quantized.dequantize().to(quantized.grid.spec.scale_dtype)
        if not weight.isfinite().all():
            raise ValueError(f"{name}: the dequantized weight is not finite in {weight.dtype}")
        return {f"{name}.weight": weight}

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Raise NotImplementedError: the codes are gone."""
        raise NotImplementedError(f"{name}: a dense checkpoint keeps no codes to read back")

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Raise NotImplementedError: the grid is gone."""
        raise NotImplementedError("a dense checkpoint keeps no grid to read back")
