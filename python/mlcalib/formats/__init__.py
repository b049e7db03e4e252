"""Formats: how quantized linears lie on disk, one file each."""

from mlcalib.formats._gguf_reader import GGUF_GRIDS, find_gguf, read_gguf
from mlcalib.formats.base import Format, formats

__all__ = ["GGUF_GRIDS", "Format", "find_gguf", "formats", "read_gguf"]
