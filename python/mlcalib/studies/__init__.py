"""One pass of a model, every calibration setting and quantizer."""

from mlcalib.studies.api import study
from mlcalib.studies.grid import settings_of, variants_of
from mlcalib.studies.spec import StudySpec, preset_names, read_study

__all__ = ["StudySpec", "preset_names", "read_study", "settings_of", "study", "variants_of"]
