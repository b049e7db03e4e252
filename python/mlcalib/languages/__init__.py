"""The languages that mlcalib knows, and sets of languages with weights."""

from mlcalib.languages.catalogue import Language, language, languages
from mlcalib.languages.language_sets import LanguageSet, language_set, set_names
from mlcalib.languages.scripts import script_name, script_share

__all__ = [
    "Language",
    "LanguageSet",
    "language",
    "language_set",
    "languages",
    "script_name",
    "script_share",
    "set_names",
]
