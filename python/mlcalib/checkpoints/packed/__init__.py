"""Models that run on packed weights, never made dense: ``load``, or ``from_pretrained``."""

from mlcalib.checkpoints.packed.linear import PackedLinear
from mlcalib.checkpoints.packed.loading import load, load_to_run
from mlcalib.checkpoints.packed.registration import register_packed

__all__ = ["PackedLinear", "load", "load_to_run", "register_packed"]
