"""Round to nearest, which needs no calibration."""

from typing import Literal

from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import QuantizerOptions


class RtnOptions(QuantizerOptions):
    """Options of ``rtn``. The range is ``minmax``, or ``mse`` for the least squared error."""

    range: Literal["minmax", "mse"] = "minmax"


@quantizers.register
class Rtn(Quantizer):
    """Rounds every weight to the nearest level of the grid of its group."""

    Options = RtnOptions
