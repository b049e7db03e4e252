"""Text → calibration set: tokenise, keep to a budget, pack into sequences, leave a fingerprint."""

from mlcalib.calibration.calibration_set import CalibrationSet, LanguageReport
from mlcalib.calibration.packing import build, from_ids
from mlcalib.calibration.tokens import (
    Stream,
    describe_separator,
    stream,
    tokenizer_fingerprint,
)

__all__ = [
    "CalibrationSet",
    "LanguageReport",
    "Stream",
    "build",
    "describe_separator",
    "from_ids",
    "stream",
    "tokenizer_fingerprint",
]
