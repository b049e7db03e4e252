"""The languages mlcalib knows, read from ``languages.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from mlcalib.registry import unknown


@dataclass(frozen=True)
class Language:
    """A natural language, or a kind of text (``code``, ``math``) that is treated like one.

    Attributes:
        code: what the language is called throughout mlcalib, e.g. ``sw``.
        name: the English name.
        kind: ``natural`` for a natural language, ``text`` for code and mathematics.
        script: ISO 15924 code, e.g. ``Latn``; None for a kind of text.
        family: language family; None for a kind of text.
        tier: how much text there is to train on; None for a kind of text.
        benchmarks: benchmark → what the language is called there. A benchmark that does not have
            the language is absent.
    """

    code: str
    name: str
    kind: Literal["natural", "text"]
    script: str | None = None
    family: str | None = None
    tier: Literal["high", "medium", "low"] | None = None
    benchmarks: Mapping[str, str] = field(default_factory=dict)


def languages() -> list[Language]:
    """List the languages, those of arXiv 2601.18306 first, then the kinds of text."""
    return list(_catalogue().values())


def language(code: str) -> Language:
    """Look a language up by its code.

    Raises:
        ValueError: there is no such language; the message names the nearest.
    """
    if code not in _catalogue():
        raise ValueError(unknown("language", code, _catalogue()))
    return _catalogue()[code]


@cache
def _catalogue() -> dict[str, Language]:
    text = files("mlcalib.languages").joinpath("languages.yaml").read_text(encoding="utf-8")
    return {code: Language(code, **row) for code, row in yaml.safe_load(text).items()}
