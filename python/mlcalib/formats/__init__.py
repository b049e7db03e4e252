"""Checkpoint formats: how quantized linears lie on disk, and the folders that hold them."""

from mlcalib.formats._gguf_reader import GGUF_GRIDS, find_gguf, read_gguf
from mlcalib.formats._reader import Checkpoint, GgufCheckpoint, load_quantized, open_checkpoint
from mlcalib.formats._shards import save_tensors
from mlcalib.formats._writer import (
    quantization_section,
    save_checkpoint,
    write_checkpoint,
    write_file_checkpoint,
)
from mlcalib.formats.base import Format, formats

__all__ = [
    "GGUF_GRIDS",
    "Checkpoint",
    "Format",
    "GgufCheckpoint",
    "find_gguf",
    "formats",
    "load_quantized",
    "open_checkpoint",
    "quantization_section",
    "read_gguf",
    "save_checkpoint",
    "save_tensors",
    "write_checkpoint",
    "write_file_checkpoint",
]
