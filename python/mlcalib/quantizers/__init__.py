"""Quantizers: they turn weights into codes. Each is one file, whose name is its name."""

from mlcalib.common.registry import Registry
from mlcalib.quantizers.base import Quantizer

__all__ = ["Quantizer", "quantizers"]

quantizers: Registry[Quantizer] = Registry(
    "quantizer", package="mlcalib.quantizers", group="mlcalib.quantizers"
)
