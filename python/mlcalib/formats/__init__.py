"""Checkpoint formats: how quantized linears lie on disk, and the folders that hold them."""

from mlcalib.formats._reader import load_quantized, read_header, validate_folder
from mlcalib.formats._writer import atomic_folder, check_output, save_checkpoint
from mlcalib.formats.base import Format, formats

__all__ = [
    "Format",
    "atomic_folder",
    "check_output",
    "formats",
    "load_quantized",
    "read_header",
    "save_checkpoint",
    "validate_folder",
]
