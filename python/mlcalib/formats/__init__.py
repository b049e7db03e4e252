"""Formats: how quantized linears lie on disk, one file each."""

from mlcalib.formats._file import FileTensors
from mlcalib.formats._readers import (
    READERS,
    Facts,
    Verdict,
    Verdicts,
    cannot_tell,
    ordinary,
    split_linears,
)
from mlcalib.formats.base import Format, find_file, find_format, formats

__all__ = [
    "READERS",
    "Facts",
    "FileTensors",
    "Format",
    "Verdict",
    "Verdicts",
    "cannot_tell",
    "find_file",
    "find_format",
    "formats",
    "ordinary",
    "split_linears",
]
