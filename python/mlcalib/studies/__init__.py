"""One pass of a model, every calibration setting and quantizer."""

from mlcalib.studies.api import study
from mlcalib.studies.spec import StudySpec, preset_names, read_study, settings_of, variants_of

__all__ = ["StudySpec", "preset_names", "read_study", "settings_of", "study", "variants_of"]
