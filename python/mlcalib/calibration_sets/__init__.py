"""Calibration sets: text becomes token ids, exactly to a budget, packed into sequences."""

from mlcalib.calibration_sets.calibration_set import CalibrationSet, LanguageReport
from mlcalib.calibration_sets.packing import build, from_ids, weighted
from mlcalib.calibration_sets.tokens import (
    Stream,
    begin_ids,
    describe_separator,
    describe_windows,
    stream,
    tokenizer_fingerprint,
)

__all__ = [
    "CalibrationSet",
    "LanguageReport",
    "Stream",
    "begin_ids",
    "build",
    "describe_separator",
    "describe_windows",
    "from_ids",
    "stream",
    "tokenizer_fingerprint",
    "weighted",
]
