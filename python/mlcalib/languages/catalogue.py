"""The languages mlcalib knows, read from ``languages.yaml``."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

RIGHT_TO_LEFT = frozenset({"Arab", "Hebr", "Nkoo"})


@dataclass(frozen=True)
class Language:
    """A natural language in one script, or a kind of text (``code``, ``math``) treated like one.

    Attributes:
        code: the name of the language in mlcalib: its shortest BCP 47 tag, e.g. ``sw``.
        name: the English name.
        script: ISO 15924 code, e.g. ``Latn``; None for a kind of text.
        family: the language family, by the top level of Ethnologue; None for a kind of text.
        tier: how much text there is to train on, as the class of Joshi et al. 2020
            (arXiv 2004.09095), from 0 (hardly any) to 5 (the most); None for a kind of text.
        flores: the code in FLORES-200, e.g. ``swh_Latn``. NLLB uses these codes too, but calls
            ``sat_Olck`` ``sat_Beng``, and lacks ``arb_Latn`` and ``min_Arab``.
        mc4: the configuration of the data set ``allenai/c4``, e.g. ``sw``, or ``iw`` for Hebrew.
        wikipedia: the edition of Wikipedia, e.g. ``sw``, or ``zh-yue`` for Cantonese.
        benchmarks: for each benchmark that has the language, its name there.

    ``flores``, ``mc4`` and ``wikipedia`` are None if the source does not have the language.
    """

    code: str
    name: str
    script: str | None = None
    family: str | None = None
    tier: int | None = None
    flores: str | None = None
    mc4: str | None = None
    wikipedia: str | None = None
    benchmarks: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["natural", "text"]:
        """``natural`` for a natural language, ``text`` for code and mathematics."""
        return "natural" if self.script else "text"

    @property
    def right_to_left(self) -> bool:
        """Whether the script is written from right to left."""
        return self.script in RIGHT_TO_LEFT


def languages() -> list[Language]:
    """Return all languages in the order of their codes, and then the kinds of text."""
    return list(_catalogue().values())


def language(code: str) -> Language:
    """Return the language with a code.

    Raises:
        ValueError: there is no such language. The message suggests languages with a similar code or
            English name, or with this code in another source (``iw``, ``zho_Hans``).
    """
    if code not in _catalogue():
        raise ValueError(unknown_language(code))
    return _catalogue()[code]


def unknown_language(given: str, sets: Iterable[str] = ()) -> str:
    """Return a message: there is no such language (or set, if ``sets`` are given), and guesses."""
    sets = list(sets)
    meanings = {name: f"'{name}'" for name in sets}
    for attribute in ("code", "name", "flores", "mc4", "wikipedia"):
        for entry in languages():
            alias = getattr(entry, attribute)
            if alias is not None:
                meanings.setdefault(alias.lower(), f"'{entry.code}' ({entry.name})")
    alias = given.lower()
    whole = alias.replace("_", "-").partition("-")[0]  # of a language with its region, as pt-BR
    close = [each for each in (alias, whole) if each in meanings][:1]
    close = close or difflib.get_close_matches(alias, meanings, cutoff=0.7)
    meant = " or ".join(dict.fromkeys(meanings[name] for name in close))
    return (
        f"Unknown {'set or language' if sets else 'language'} '{given}'."
        + (f" Did you mean {meant}?" if meant else "")
        + (f" The sets are {', '.join(sets)}." if sets else "")
        + f" The command 'mlcalib languages' lists the {len(languages())} languages."
    )


@cache
def _catalogue() -> dict[str, Language]:
    text = files("mlcalib.languages").joinpath("languages.yaml").read_text(encoding="utf-8")
    return {code: Language(code, **row) for code, row in yaml.safe_load(text).items()}
