"""Quantizers: one file each."""

from mlcalib.quantizers.base import Quantizer
from mlcalib.registry import Registry

__all__ = ["Quantizer", "quantizers"]

quantizers: Registry[Quantizer] = Registry(
    "quantizer", package="mlcalib.quantizers", group="mlcalib.quantizers"
)
