"""Round to nearest: needs no calibration."""

from typing import Literal

from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import QuantizerOptions


class RtnOptions(QuantizerOptions):
    """Options of ``rtn``: the range is ``minmax``, or ``mse`` for least squared error."""

    range: Literal["minmax", "mse"] = "minmax"


@quantizers.register
class Rtn(Quantizer):
    """Rounds every weight to the nearest level of its group's grid."""

    Options = RtnOptions
