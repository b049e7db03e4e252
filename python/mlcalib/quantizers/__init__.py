"""Quantizers: one file each."""

from mlcalib.common.registry import Registry
from mlcalib.quantizers.base import Quantizer

__all__ = ["Quantizer", "quantizers"]

quantizers: Registry[Quantizer] = Registry(
    "quantizer", package="mlcalib.quantizers", group="mlcalib.quantizers"
)
