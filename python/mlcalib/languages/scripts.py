"""Scripts: their English names, and how much of a text is in one."""

from collections.abc import Iterable
from functools import cache

import regex

# ISO 15924, with the usual name where the standard's is long.
_NAMES = {
    "Arab": "Arabic",
    "Armn": "Armenian",
    "Beng": "Bengali",
    "Cyrl": "Cyrillic",
    "Deva": "Devanagari",
    "Ethi": "Ethiopic",
    "Geor": "Georgian",
    "Grek": "Greek",
    "Gujr": "Gujarati",
    "Guru": "Gurmukhi",
    "Hang": "Hangul",
    "Hans": "Han (simplified)",
    "Hant": "Han (traditional)",
    "Hebr": "Hebrew",
    "Jpan": "Japanese",
    "Khmr": "Khmer",
    "Knda": "Kannada",
    "Laoo": "Lao",
    "Latn": "Latin",
    "Mlym": "Malayalam",
    "Mymr": "Myanmar",
    "Nkoo": "N'Ko",
    "Olck": "Ol Chiki",
    "Orya": "Oriya",
    "Sinh": "Sinhala",
    "Taml": "Tamil",
    "Telu": "Telugu",
    "Tfng": "Tifinagh",
    "Thai": "Thai",
    "Tibt": "Tibetan",
}


def script_name(code: str | None) -> str:
    """Return the English name of a script (``Latin`` for ``Latn``), or "" for None.

    Raises:
        KeyError: no language of the catalogue is written in this script.
    """
    return "" if code is None else _NAMES[code]


def script_share(texts: Iterable[str], code: str | None) -> float | None:
    """Return the share of the letters of texts that are of a script, by Unicode's property.

    Letters that belong to no script (modifier letters, the length mark of Japanese) do not count.
    Simplified and traditional Chinese are one script here; Japanese and Korean have several.

    Args:
        texts: the texts.
        code: ISO 15924 code of the script; None for text that has none, such as source code.

    Returns:
        0 to 1; None without a script or letters.
    """
    if code is None:
        return None
    own = letters = 0
    for text in texts:
        letters += _count(_LETTERS, text)
        own += _count(_letters_of(code), text)
    return own / letters if letters else None


_LETTERS = regex.compile(r"(?V1)[\p{L}--[\p{Zyyy}\p{Zinh}]]+")
_SEVERAL = {
    "Hans": ("Hani", "Bopo"),
    "Hant": ("Hani", "Bopo"),
    "Hang": ("Hang", "Hani"),
    "Jpan": ("Hani", "Hira", "Kana"),
}


@cache
def _letters_of(code: str) -> "regex.Pattern[str]":
    properties = "".join(rf"\p{{Script={each}}}" for each in _SEVERAL.get(code, (code,)))
    return regex.compile(rf"(?V1)[\p{{L}}&&[{properties}]]+")


def _count(letters: "regex.Pattern[str]", text: str) -> int:
    return sum(len(run) for run in letters.findall(text))
