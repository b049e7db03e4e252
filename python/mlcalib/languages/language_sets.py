"""Sets of languages with weights, and the ways in which a user can write one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from mlcalib.common.errors import printable
from mlcalib.languages.catalogue import language, languages, unknown_language


@dataclass(frozen=True)
class LanguageSet:
    """The languages of a calibration setting and their shares of its tokens.

    Weights count tokens, not documents. A language that needs more tokens for a text of one meaning
    therefore gets no larger share of the budget.

    Attributes:
        name: can be part of a file name, e.g. ``multi10``, ``en+sw``, ``en0.7+sw0.3``.
        weights: language code → share. Any positive numbers may be given; they are stored with the
            sum 1.

    Raises:
        ValueError: there are no languages, a language is unknown, or a weight is not a positive
            number.
    """

    name: str
    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError(f"The set '{self.name}' names no language; name at least one.")
        for code, weight in self.weights.items():
            language(code)
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"The weight of '{code}' in the set '{self.name}' is {weight!r}; a weight must "
                    "be a positive, finite number. To leave a language out, do not name it."
                )
        total = sum(map(Fraction, self.weights.values()))
        shares = {code: float(Fraction(weight) / total) for code, weight in self.weights.items()}
        object.__setattr__(self, "weights", shares)

    def split(self, total: int) -> dict[str, int]:
        """Split a number of tokens over the languages, by the method of largest remainders.

        Args:
            total: the number of tokens of all languages together.

        Returns:
            Tokens per language, in the order of ``weights``. They add up to ``total``, and each
            differs from its exact share by less than 1. Of equal remainders the earlier language
            gets the token.

        Raises:
            ValueError: ``total`` is not positive.
        """
        if total < 1:
            raise ValueError(
                f"A calibration set of {total} tokens was asked for; ask for 1 or more."
            )
        # Fractions are exact: equal shares stay equal, and ties go by order on every machine.
        whole = sum(map(Fraction, self.weights.values()))
        exact = {code: total * Fraction(share) / whole for code, share in self.weights.items()}
        counts = {code: math.floor(share) for code, share in exact.items()}
        by_remainder = sorted(exact, key=lambda code: counts[code] - exact[code])
        for code in by_remainder[: total - sum(counts.values())]:
            counts[code] += 1
        return counts


def set_names() -> list[str]:
    """Return the names of the sets that come with mlcalib."""
    return sorted(_builtin_sets())


def language_set(spec: str) -> LanguageSet:
    """Return the set that a user describes.

    Args:
        spec: one of four: the name of a set (``multi10``); the path of a YAML file with
            ``weights: {en: 1, …}`` (and optionally a note, ``source:``), whose name is the name of
            the set; languages with equal weights (``en,sw``); or languages with weights
            (``en:0.7,sw:0.3``).

    Raises:
        ValueError: a set or language is unknown, a language is named twice, a weight is not a
            positive number, only some languages have weights, or the file is not a set.
        FileNotFoundError: the file does not exist.
        TypeError: it is no text, e.g. a mapping from languages to documents.
    """
    check_spelling(spec)
    spec = spec.strip()
    builtin = _builtin_sets()
    if spec in builtin:
        return _read(builtin[spec], spec)
    path = Path(spec)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        found = _read(path.expanduser(), path.stem)
        # One name for two mixtures would make their results look like the same setting.
        if path.stem in builtin and found != _read(builtin[path.stem], path.stem):
            raise ValueError(
                f"The set file '{path}' has the name of the set '{path.stem}' that comes with "
                "mlcalib, but other weights; rename the file."
            )
        return found
    return _ad_hoc(spec)


def check_spelling(given: object) -> None:
    """Refuse languages that are not described by a text.

    Raises:
        TypeError: as when documents are given where languages are expected; says where they go.
    """
    if isinstance(given, str):
        return
    named = f"a {type(given).__name__}"
    if isinstance(given, Mapping | list | tuple | set) and given:
        named += f" of {', '.join(printable(str(each)) for each in list(given)[:3])}"
    raise TypeError(
        f"languages is {named}, expected a text: a set ('multi10'), a list ('en,sw') or shares "
        "('en:0.7,sw:0.3'); or a LanguageSet. Documents of your own are the corpus, by keyword: "
        "corpus={'en': ['a document', …], 'sw': […]}."
    )


def _builtin_sets() -> dict[str, Traversable]:
    folder = files("mlcalib.languages").joinpath("sets")
    return {item.name.removesuffix(".yaml"): item for item in folder.iterdir()}


def _ad_hoc(spec: str) -> LanguageSet:
    items = [item.strip() for item in spec.split(",")]
    if not all(items):
        raise ValueError(f"The set '{spec}' has an empty entry; write languages like 'en,sw'.")
    if items == [spec] and ":" not in spec and spec not in (known.code for known in languages()):
        raise ValueError(unknown_language(spec, set_names()))
    weighted = {":" in item for item in items}
    if len(weighted) > 1:
        raise ValueError(
            f"The set '{spec}' gives weights to some languages only; give all of them a weight "
            "('en:0.5,sw:0.5') or none ('en,sw')."
        )
    weights: dict[str, float] = {}
    for item in items:
        code, _, weight = (part.strip() for part in item.partition(":"))
        if code in weights:
            raise ValueError(f"The set '{spec}' names '{code}' twice; name each language once.")
        weights[code] = _number(weight, spec, code) if True in weighted else 1
    return LanguageSet(_name(LanguageSet(spec, weights).weights), weights)


def _number(text: str, spec: str, code: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"The weight of '{code}' in the set '{spec}' is '{text}', which is not a number."
        ) from None


def _name(shares: dict[str, float]) -> str:
    equal = len(set(shares.values())) == 1
    return "+".join(code if equal else f"{code}{share:.6g}" for code, share in shares.items())


def _read(file: Traversable, name: str) -> LanguageSet:
    if not file.is_file():
        raise FileNotFoundError(f"The set file '{file}' does not exist.")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The set file '{file}' is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("weights"), dict):
        raise ValueError(
            f"The set file '{file}' has no weights; write 'weights: {{en: 1, sw: 1}}'."
        )
    if extra := content.keys() - {"weights", "source"}:
        raise ValueError(
            f"The set file '{file}' has the key {sorted(map(str, extra))[0]!r}; only 'weights' and "
            "'source' are known."
        )
    for code in content["weights"]:
        if not isinstance(code, str):
            raise ValueError(
                f"The set file '{file}' has the language {code!r}, which YAML does not read as "
                "text; put it in quotes."
            )
    return LanguageSet(name, content["weights"])


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML itself keeps the last of two equal keys in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)
