"""Language confusion: does a model answer in the language that it should?

The rates follow Marchisio et al. 2024 (arXiv 2406.20052) and its code, for-ai/language-confusion on
GitHub. Two things differ: the detector is py3langid, whose model is in its wheel, and not the
lid.176 of fastText; and English words are recognised by their letters, and not by a dictionary.
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
"""The number of words that a line must have to be judged; shorter lines say too little."""

MIN_PROBABILITY = 0.3
"""Below this probability of the detector, the language of a line is unknown and the line wrong."""

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
    """The judgement of a response.

    Attributes:
        lines: whether all its lines are in the right language; None if no line is long enough.
        words: whether no line has a Latin word; None if this does not apply, because a line is in
            the wrong language or the language itself has Latin letters.
    """

    lines: bool | None
    words: bool | None


def measurable(language: Language) -> str | None:
    """Return why the rates of a language cannot be measured, or None if they can."""
    if _labels(language) & set(_detector().labels):
        return None
    return "not measured: the detector does not know the language"


def judge(responses: Sequence[str], language: Language) -> list[Verdict]:
    """Judge responses that should be in a language.

    A response passes at line level if every line of at least 5 words (or 10 characters, if words
    are not separated by spaces) is detected as the language. It passes at word level if, besides,
    none of these lines has a word of more than three lower-case Latin letters. The latter is asked
    only of languages in other scripts.

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
