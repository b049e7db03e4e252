"""Per-layer overrides: linears that stay in floating point, or lie on another grid."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlcalib.common.layer_names import fused_groups, patterns
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import QuantizerOptions

OVERRIDABLE = ("bits", "group_size", "symmetric")


@dataclass(frozen=True)
class Override:
    """What becomes of the linears that a pattern takes.

    Attributes:
        pattern: a regular expression, searched for in the names of linears.
        options: of their quantizer; None where they are skipped.
        linears: their names; each is taken by the first override that matches it.
    """

    pattern: str
    options: QuantizerOptions | None
    linears: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint records of it; JSON types."""
        changed = self.options and self.options.model_dump(include=set(OVERRIDABLE))
        return {"pattern": self.pattern, "options": changed, "linears": list(self.linears)}


def resolve(
    quantizer: type[Quantizer],
    options: Mapping[str, Any],
    ignore: Sequence[str],
    overrides: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
) -> list[Override]:
    """Say which linears are skipped, and which are quantized with other options.

    Patterns are searched for anywhere in a name. What is skipped comes first, then the overrides in
    the order given; the first that matches a linear takes it.

    Args:
        quantizer: its class.
        options: as given for all linears.
        ignore: patterns of linears that stay in floating point.
        overrides: pattern → ``bits``, ``group_size``, ``symmetric``.
        names: of every linear that would be quantized.

    Raises:
        ValueError: not a regular expression; a pattern that takes no linear; an option that does
            not exist or cannot differ between linears; linears that readers fuse and that would
            differ; nothing left to quantize.
    """
    if isinstance(ignore, str):
        raise ValueError(f"ignore is one string; give a list of patterns, such as [{ignore!r}].")
    wanted: list[tuple[str, QuantizerOptions | None]] = [(pattern, None) for pattern in ignore]
    wanted += [
        (pattern, _options(quantizer, options, pattern, given))
        for pattern, given in overrides.items()
    ]
    left = dict.fromkeys(names)
    found = []
    for pattern, changed in wanted:
        matching = _matching(pattern, names)
        taken = [name for name in matching if name in left]
        if not taken:
            raise ValueError(
                f"The pattern '{pattern}' changes nothing: those before it (skipped linears come "
                f"first) take all that it matches, such as {matching[0]}. Leave it out, or give it "
                "before them."
            )
        found.append(Override(pattern, changed, tuple(taken)))
        for name in taken:
            del left[name]
    _check_fused(found, quantizer.Options(**options), names)
    if not left and all(override.options is None for override in found):
        raise ValueError(f"All {len(names)} linears are skipped; nothing is left to quantize.")
    return found


def parse_bits(given: Sequence[str]) -> tuple[int | None, dict[str, dict[str, int]]]:
    """Split what ``--bits`` was given into the bits of most linears (or None) and overrides.

    Raises:
        ValueError: neither a number nor REGEX=BITS; two numbers; a pattern twice.
    """
    plain: list[int] = []
    overrides: dict[str, dict[str, int]] = {}
    for item in given:
        pattern, equals, value = item.rpartition("=")  # a pattern may have one too
        if not value.isdecimal() or (equals and not pattern):
            raise ValueError(f"--bits is '{item}', expected a number, or REGEX=BITS.")
        if pattern in overrides:
            raise ValueError(f"--bits gives the pattern '{pattern}' twice; give it once.")
        if equals:
            overrides[pattern] = {"bits": int(value)}
        else:
            plain.append(int(value))
    if len(plain) > 1:
        raise ValueError(
            f"--bits is given as {plain[0]} and as {plain[1]}; give one, or REGEX=BITS."
        )
    return plain[0] if plain else None, overrides


def _options(
    quantizer: type[Quantizer],
    options: Mapping[str, Any],
    pattern: str,
    given: Mapping[str, Any],
) -> QuantizerOptions:
    if not given or not set(given) <= set(OVERRIDABLE):
        raise ValueError(
            f"The override '{pattern}' sets {', '.join(given) or 'nothing'}; expected one or more "
            f"of {', '.join(OVERRIDABLE)}. Other options are the same for all linears."
        )
    try:
        changed = quantizer.Options(**{**options, **given})
    except ValueError as error:
        raise ValueError(f"The override '{pattern}': {error}") from error
    return changed


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}.") from error
    matching = [name for name in names if compiled.search(name)]
    if not matching:
        # The linears of a block, and a last one: what differs is seen.
        examples = ", ".join(dict.fromkeys([*names[:7], names[-1]]))
        raise ValueError(
            f"The pattern '{pattern}' matches none of the {len(names)} linears; they are called "
            f"{examples}."
        )
    return matching


def _check_fused(found: Iterable[Override], others: QuantizerOptions, names: Sequence[str]) -> None:
    taken_by = {name: override for override in found for name in override.linears}
    for members in fused_groups(names):
        takers = [taken_by.get(member) for member in members]
        outcomes = {repr(others if taker is None else taker.options) for taker in takers}
        if len(outcomes) == 1:
            continue
        override = next(override for override in takers if override is not None)
        hit = [name for name in members if taken_by.get(name) is override]
        mates = [name for name in members if name not in hit]
        raise ValueError(
            f"The pattern '{override.pattern}' takes {_list(hit)} but not {_list(mates)}: vLLM and "
            "SGLang run these as one layer, so they must be quantized alike or skipped together. A "
            f"pattern that fits: '{_widened(override, names)}'."
        )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _widened(override: Override, names: Sequence[str]) -> str:
    """Return a pattern that takes what an override takes, and all that is fused with it."""
    wanted = set(override.linears)
    for members in fused_groups(names):
        if wanted.intersection(members):
            wanted.update(members)
    alternatives = "|".join(patterns(wanted, names))
    return f"^({alternatives})$"
