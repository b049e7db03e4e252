"""What every quantizer is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.config import Config
from mlcalib.statistics import StatisticSet


class QuantizerOptions(Config):
    """Options of every quantizer; see ``_core.GridSpec``.

    Attributes:
        bits: 2 … 8.
        group_size: input channels that share a scale; -1 is the whole row.
        symmetric: zero point fixed at mid-range.
        range: how each group's range is chosen.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    range: Literal["minmax", "mse", "gram"] = "minmax"


class Quantizer(ABC):
    """Turns weights into codes, given statistics of their input. Knows no model.

    Attributes:
        needs: kinds of statistic it cannot do without.
        Options: its options.
        spec: the grids it fits.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[QuantizerOptions]] = QuantizerOptions

    def __init__(self, options: QuantizerOptions, scale_dtype: torch.dtype) -> None:
        """Take options of this quantizer and the dtype that the checkpoint holds scales in.

        Raises:
            ValueError: bits or group size outside their domain.
        """
        self.options = options
        self.spec = GridSpec(
            options.bits, options.group_size, options.symmetric, options.range, scale_dtype
        )

    @property
    def order(self) -> Literal["activation", "natural"]:
        """The order in which input channels are visited, which formats record."""
        return "natural"

    @abstractmethod
    def solve(
        self, weights: Sequence[Tensor], statistics: StatisticSet | None
    ) -> list[QuantizedLinear]:
        """Quantize linears that read the same input.

        Args:
            weights: [out, in] each, float32, bfloat16 or float16, with the same ``in``.
            statistics: of their input; None only where ``needs`` is empty.

        Raises:
            ValueError: NaN or Inf; shapes that do not fit.
        """

    def round(self, weights: Sequence[Tensor]) -> list[QuantizedLinear]:
        """Round linears whose input no token ever reached: there is nothing to solve from.

        The grids weigh all channels alike. Args and errors as ``solve``.
        """
        results = []
        for weight in weights:
            alike = torch.eye(weight.shape[1], device=weight.device)
            grid = _core.fit_grid(weight, self.spec, alike)  # read where range is "gram"
            results.append(QuantizedLinear(_core.quantize(weight, grid), grid))
        return results
