"""Languages, and sets of them with weights: what a calibration set is made of."""

from mlcalib.languages.catalogue import Language, language, languages
from mlcalib.languages.language_sets import LanguageSet, language_set, set_names
from mlcalib.languages.scripts import script_name

__all__ = [
    "Language",
    "LanguageSet",
    "language",
    "language_set",
    "languages",
    "script_name",
    "set_names",
]
