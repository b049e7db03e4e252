"""A linear whose weight stays packed."""

import torch
from torch import Tensor, nn

from mlcalib import _core
from mlcalib._core import GridSpec, QuantizedLinear


class PackedLinear(nn.Module):
    """x Wᵀ + bias with W = scale · (code - zero), dequantized in registers inside the product.

    For inference: no gradient passes through it. The grid keeps its scales, whatever the module is
    cast to, and x may be float32, bfloat16 or float16: sums are float32, and only the result is
    rounded to x's dtype.

    Attributes:
        packed: uint8 [tiles, bytes], the layout of ``_core.pack_linear``; not meant for files.
        bias: [out_features] of x's dtype, or None.
        spec: the grid.
    """

    packed: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: GridSpec,
        bias: Tensor | None = None,
    ) -> None:
        """Make a linear that has no weight yet; ``fill`` gives it one."""
        super().__init__()
        self.in_features, self.out_features, self.spec = in_features, out_features, spec
        nothing = torch.empty(0, dtype=torch.uint8)
        self.register_buffer("packed", nothing, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(cls, quantized: QuantizedLinear, bias: Tensor | None = None) -> "PackedLinear":
        """Return a linear with the codes and the grid of ``quantized``."""
        rows, columns = quantized.codes.shape
        linear = cls(columns, rows, quantized.grid.spec, bias)
        linear.fill(quantized)
        return linear

    def fill(self, quantized: QuantizedLinear) -> None:
        """Take the weight.

        Raises:
            ValueError: it has another shape than this linear, or does not fit its own grid.
        """
        rows, columns = quantized.codes.shape
        if (rows, columns) != (self.out_features, self.in_features):
            raise ValueError(
                f"the weight is [{rows}, {columns}], but the model's linear is "
                f"[{self.out_features}, {self.in_features}]"
            )
        self.spec = quantized.grid.spec
        self.register_buffer("packed", _core.pack_linear(quantized))  # in state_dict from now on

    def quantized(self) -> QuantizedLinear:
        """Return codes and grid; ``quantized().dequantize()`` is the weight."""
        return _core.unpack_linear(self.packed, self.out_features, self.in_features, self.spec)

    def dequantized(self, dtype: torch.dtype, device: torch.device) -> nn.Linear:
        """Return a linear of the same numbers whose weight, [out, in], is not packed."""
        has_bias = self.bias is not None
        linear = nn.Linear(self.in_features, self.out_features, has_bias, device="meta")
        weight = self.quantized().dequantize().to(dtype).to(device)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(device, dtype), requires_grad=False)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] of x [..., in_features], in x's dtype.

        Raises:
            RuntimeError: a gradient is asked for.
            NotImplementedError: x is on a device without a kernel.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "packed weights pass no gradient on; run the model under torch.no_grad(), or "
                "train one in floating point"
            )
        rows, columns = self.out_features, self.in_features
        return _core.packed_linear(x, self.packed, rows, columns, self.spec, self.bias)

    def extra_repr(self) -> str:
        """Return sizes and grid."""
        spec = self.spec
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={spec.bits}, group_size={spec.group_size}, "
            f"symmetric={spec.symmetric}"
        )
