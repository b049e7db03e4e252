"""Studies: every combination of calibration settings and quantizers, from one pass of a model."""

from mlcalib.studies.finished import Study
from mlcalib.studies.grid import settings_of, variants_of
from mlcalib.studies.spec import StudySpec, preset_names, read_study
from mlcalib.studies.study import study

__all__ = [
    "Study",
    "StudySpec",
    "preset_names",
    "read_study",
    "settings_of",
    "study",
    "variants_of",
]
