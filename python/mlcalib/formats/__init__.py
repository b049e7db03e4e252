"""Checkpoint formats: how quantized linears lie on disk, and the folders that hold them."""

from mlcalib.formats._reader import load_quantized
from mlcalib.formats._writer import quantization_section, save_checkpoint, write_checkpoint
from mlcalib.formats.base import Format, formats

__all__ = [
    "Format",
    "formats",
    "load_quantized",
    "quantization_section",
    "save_checkpoint",
    "write_checkpoint",
]
