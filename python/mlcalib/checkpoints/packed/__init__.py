"""Models that run on packed weights, never made dense: ``load``, or ``from_pretrained`` itself."""

from mlcalib.checkpoints.packed.linear import PackedLinear
from mlcalib.checkpoints.packed.loading import load

__all__ = ["PackedLinear", "load"]
