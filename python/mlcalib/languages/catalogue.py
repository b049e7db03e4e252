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
        code: what the language is called throughout mlcalib: its shortest BCP 47 tag, e.g. ``sw``.
        name: the English name.
        script: ISO 15924 code, e.g. ``Latn``; None for a kind of text.
        family: language family, by Ethnologue's top level; None for a kind of text.
        tier: how much text there is to train on, as the class of Joshi et al. 2020
            (arXiv 2004.09095), from 0 (hardly any) to 5 (the most); None for a kind of text.
        flores: code in FLORES-200, e.g. ``swh_Latn``. NLLB has the same, but for ``sat_Olck``,
            which is ``sat_Beng`` there, and ``arb_Latn`` and ``min_Arab``, which it lacks.
        mc4: configuration of the data set ``allenai/c4``, e.g. ``sw``, or ``iw`` for Hebrew.
        wikipedia: edition of Wikipedia, e.g. ``sw``, or ``zh-yue`` for Cantonese.
        benchmarks: benchmark → what the language is called there. A benchmark that does not have
            the language is absent.

    ``flores``, ``mc4`` and ``wikipedia`` are None where the source does not have the language.
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
    """List the languages by code, then the kinds of text."""
    return list(_catalogue().values())


def language(code: str) -> Language:
    """Look a language up by its code.

    Raises:
        ValueError: there is no such language; the message names the nearest, by spelling, English
            name, or code elsewhere (``iw``, ``zho_Hans``).
    """
    if code not in _catalogue():
        raise ValueError(unknown_language(code))
    return _catalogue()[code]


def unknown_language(given: str, sets: Iterable[str] = ()) -> str:
    """Say that there is no such language (or set, where ``sets`` are given) and what was meant."""
    sets = list(sets)
    meanings = {name: f"'{name}'" for name in sets}
    for attribute in ("code", "name", "flores", "mc4", "wikipedia"):
        for entry in languages():
            alias = getattr(entry, attribute)
            if alias is not None:
                meanings.setdefault(alias.lower(), f"'{entry.code}' ({entry.name})")
    alias = given.lower()
    close = [alias] if alias in meanings else difflib.get_close_matches(alias, meanings, cutoff=0.7)
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
