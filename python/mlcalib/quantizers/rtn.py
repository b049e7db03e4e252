"""Round to nearest, which needs no calibration."""

from typing import Literal

from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import QuantizerOptions


class RTN(QuantizerOptions):
    """Rounding to nearest: every weight by itself, without calibration text.

    The options of the quantizer ``rtn``.

    Attributes:
        bits: the bits of a code, from 2 to 8; of other numbers than integers, 4 or 8.
        group_size: how many input channels share a scale; -1 is the whole row.
        symmetric: whether the zero point is fixed at the middle of the range.
        numbers: what scales multiply: ``integer``, ``nf4``, or floats of 4 (``e2m1``) or 8 bits
            (``e4m3``); see ``QuantizerOptions``, also for ``super_block``,
            ``scale_bits`` and ``per_tensor``.
        mix: grids of GGUF, as llama.cpp chooses them for a name such as ``Q4_K_M``; empty for one
            grid for all linears.
        range: how the range of each group is chosen: its extremes (``minmax``), or the least
            squared error of the weights (``mse``).
    """

    method = "rtn"

    range: Literal["minmax", "mse"] = "minmax"


@quantizers.register
class RtnQuantizer(Quantizer):
    """Rounds every weight to the nearest level of the grid of its group."""

    Options = RTN
