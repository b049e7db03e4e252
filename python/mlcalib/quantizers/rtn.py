"""Round to nearest: needs no calibration."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mlcalib import _core
from mlcalib._core import QuantizedLinear
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import QuantizerOptions
from mlcalib.statistics import StatisticSet


class RtnOptions(QuantizerOptions):
    """Options of ``rtn``: the range is ``minmax``, or ``mse`` for least squared error."""

    range: Literal["minmax", "mse"] = "minmax"


@quantizers.register
class Rtn(Quantizer):
    """Rounds every weight to the nearest level of its group's grid."""

    Options = RtnOptions

    def solve(
        self, weights: Sequence[Tensor], statistics: StatisticSet | None
    ) -> list[QuantizedLinear]:
        """See ``Quantizer.solve``."""
        gram = None if statistics is None else statistics.gram()
        return [_core.rtn(weight, self.spec, gram) for weight in weights]
