"""Formats: how quantized linears lie on disk, one file each."""

from mlcalib.formats._file import FileTensors
from mlcalib.formats._gguf_mix import types_in_mix
from mlcalib.formats._gguf_names import gguf_names
from mlcalib.formats._layout import held_scale, with_dtype
from mlcalib.formats._readers import (
    READERS,
    Facts,
    Verdict,
    Verdicts,
    cannot_tell,
    ordinary,
    split_linears,
)
from mlcalib.formats._section import Kind, Problem, as_written
from mlcalib.formats._static_inputs import KV_CACHE_SCHEME, cache_scales
from mlcalib.formats.base import MODELOPT, Format, find_file, find_format, formats, stored_section

__all__ = [
    "KV_CACHE_SCHEME",
    "MODELOPT",
    "READERS",
    "Facts",
    "FileTensors",
    "Format",
    "Kind",
    "Problem",
    "Verdict",
    "Verdicts",
    "as_written",
    "cache_scales",
    "cannot_tell",
    "find_file",
    "find_format",
    "formats",
    "gguf_names",
    "held_scale",
    "ordinary",
    "split_linears",
    "stored_section",
    "types_in_mix",
    "with_dtype",
]
