"""Language confusion: does a model answer in the language that it should?

Rates as in Marchisio et al. 2024 (arXiv 2406.20052) and its code, for-ai/language-confusion on
GitHub, but for the detector (py3langid, whose model is in its wheel; there fastText's lid.176) and
for English words (there those of a dictionary).
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlcalib.common.optional import optional
from mlcalib.evaluation.tasks.text_metrics import unspaced
from mlcalib.languages import Language

MIN_WORDS = 5
"""Words of a line that is looked at; shorter ones say too little."""

MIN_PROBABILITY = 0.3
"""Of the detector; below, a line's language is unknown, and the line is wrong."""

# What the detector calls by another name, or tells apart where readers do not.
_LABELS = {
    "zh": ("zh", "wuu", "yue"),
    "zh-Hant": ("zh", "yue"),  # it does not tell the scripts apart
    "ar": ("ar", "ary", "arz"),
    "nb": ("no",),
    "ff": ("fuv",),
    "ki": ("kik",),
    "gn": ("gug",),
}
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_REMOVED = str.maketrans({**dict.fromkeys(string.punctuation + "،", ""), "—": " "})


@dataclass(frozen=True)
class Verdict:
    """What a response was found to be.

    Attributes:
        lines: whether all its lines are in the right language; None if none is long enough.
        words: whether no line has a word of another script's; None if that was not asked: a line
            is wrong, or the language has Latin letters itself.
    """

    lines: bool | None
    words: bool | None


def measurable(language: Language) -> str | None:
    """Return why the rates of a language cannot be measured; None if they can."""
    if _labels(language) & set(_detector().labels):
        return None
    return "not measured: the detector does not know the language"


def judge(responses: Sequence[str], language: Language) -> list[Verdict]:
    """Judge responses that should be in a language.

    A response passes at line level if every line of at least 5 words (10 characters where words
    are not spaced) is detected as the language. It passes at word level if, besides, none of these
    lines has a word of more than three lower-case Latin letters; asked of languages in other
    scripts only.

    Raises:
        ImportError: ``py3langid`` is not installed.
    """
    return [_judge(response, language) for response in responses]


def _judge(response: str, language: Language) -> Verdict:
    lines = [
        line
        for line in response.partition("\nQ:")[0].strip().translate(_REMOVED).split("\n")
        if _long_enough(line, language)
    ]
    if not lines:
        return Verdict(None, None)
    right = _labels(language)
    if not all(_detect(line) in right for line in lines):
        return Verdict(lines=False, words=None)
    if language.script == "Latn":
        return Verdict(lines=True, words=None)
    foreign = (word for line in lines for word in _LATIN.findall(line))
    return Verdict(True, not any(word.islower() and len(word) > 3 for word in foreign))


def _long_enough(line: str, language: Language) -> bool:
    words = line.split()
    if unspaced(language):  # two characters a word, about
        return len("".join(words)) >= 2 * MIN_WORDS or len(words) >= MIN_WORDS
    return len(words) >= MIN_WORDS


def _labels(language: Language) -> set[str]:
    return set(_LABELS.get(language.code, (language.code,)))


def _detect(line: str) -> str:
    label, probability = _detector().classify(line)
    return str(label) if probability > MIN_PROBABILITY else "unknown"


@cache
def _detector() -> Any:
    langid = optional("py3langid.langid", "eval", "The task 'language_confusion'")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
