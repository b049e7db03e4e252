"""Checkpoint formats: how quantized linears lie on disk, and the folders that hold them."""

from mlcalib.formats._reader import Checkpoint, load_quantized, open_checkpoint
from mlcalib.formats._shards import save_tensors
from mlcalib.formats._writer import (
    quantization_section,
    save_checkpoint,
    write_checkpoint,
    write_file_checkpoint,
)
from mlcalib.formats.base import Format, formats

__all__ = [
    "Checkpoint",
    "Format",
    "formats",
    "load_quantized",
    "open_checkpoint",
    "quantization_section",
    "save_checkpoint",
    "save_tensors",
    "write_checkpoint",
    "write_file_checkpoint",
]
