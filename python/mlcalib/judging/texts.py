"""Prompts and what models answered, as files, and two models' answers side by side."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlcalib.common.errors import printable
from mlcalib.common.row_files import file_rows
from mlcalib.corpora import shuffled
from mlcalib.judging.language_codes import find_code
from mlcalib.languages import LanguageSet, language_set
from mlcalib.results.generations import Generation, Prompt, Source


@dataclass(frozen=True)
class Pair(Prompt):
    """A prompt and what two models answered.

    Attributes:
        first: the answer of the first model, which the other is compared with.
        second: the answer of the second model.
    """

    first: str
    second: str


def read_prompts(
    path: str | Path,
    languages: str | LanguageSet | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """Read prompts from a JSONL or Parquet file.

    A row has ``id`` (or its place in the file serves), ``language`` and ``prompt``; or the fields
    of the Aya evaluation suite (``inputs``, ``language`` as ISO 639-3, ``script``), as of its sets
    ``dolly_machine_translated`` and ``dolly_human_edited``.

    Args:
        path: the file.
        languages: as for ``mlcalib.calibration``; the others are left out. None for all.
        limit: prompts per language, drawn by the seed; a language that has fewer gives all.
        seed: what they are drawn by.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: a row without prompt or language, an unknown language, an id that is there
            twice, or a language that the file does not have.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected 1 or more prompts per language.")
    found = [
        Prompt(
            str(row.get("id", number)),
            _language(row, where),
            _text(row, ("prompt", "inputs"), where),
        )
        for number, (where, row) in enumerate(file_rows(Path(path)), start=1)
    ]
    _check_ids(found, path)
    by_language: dict[str, list[Prompt]] = {}
    for prompt in found:
        by_language.setdefault(prompt.language, []).append(prompt)
    if limit is not None:
        by_language = {
            code: shuffled(prompts, seed, code)[:limit] for code, prompts in by_language.items()
        }
    return [
        prompt for code in _wanted(by_language, languages, path) for prompt in by_language[code]
    ]


def read_generations(path: str | Path) -> list[Generation]:
    """Read what ``generate`` or an evaluation wrote: see ``mlcalib.results.generations``.

    Of a row ``id``, ``language``, ``prompt`` and ``output`` are read, and needed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row without one of these, an unknown language, or an id that is there twice.
    """
    found = [
        Generation(
            _text(row, ("id",), where),
            _language(row, where),
            _text(row, ("prompt",), where),
            _text(row, ("output",), where, blank=True),
        )
        for where, row in file_rows(Path(path))
    ]
    _check_ids(found, path)
    return found


def read_source(path: str | Path) -> Source:
    """Return where a file of generations says that it comes from, or else its own name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a file of generations.
    """
    row = next((row for _, row in file_rows(Path(path))), {})
    if "model" not in row:
        return Source(str(path))
    fields = ("model", "method", "calibration")
    return Source(**{name: str(row[name]) for name in fields if name in row})


def pair(first: Sequence[Generation], second: Sequence[Generation]) -> list[Pair]:
    """Put the answers of two models to the same prompts side by side.

    Raises:
        ValueError: nothing to compare, or other prompts; names the first that differ.
    """
    if not first:
        raise ValueError("There are no generations to compare: the first file is empty.")
    others = {(each.language, each.id): each for each in second}
    here = {(each.language, each.id) for each in first}
    if here != others.keys():
        language, name = min(here ^ others.keys())
        side = "second" if (language, name) in here else "first"
        raise ValueError(
            f"The two files answer other prompts: id {name} in '{language}' is missing in the "
            f"{side} ({len(first):,} and {len(second):,} generations); generate both from the same "
            "prompts file, with the same languages, limit and seed."
        )
    pairs = []
    for each in first:
        other = others[each.language, each.id]
        if each.prompt != other.prompt:
            raise ValueError(
                f"Id {each.id} in '{each.language}' is another prompt in each file "
                f"({each.prompt[:60]!r} and {other.prompt[:60]!r}); generate both from the same "
                "prompts file."
            )
        pairs.append(Pair(each.id, each.language, each.prompt, each.output, other.output))
    return pairs


def fingerprint(texts: Iterable[Prompt], *settings: str) -> str:
    """Return a sha256 of prompts, generations or pairs, and of what was set beside them."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text in texts:
        digest.update(json.dumps(asdict(text), sort_keys=True).encode())
    return digest.hexdigest()


def _text(row: dict[str, Any], fields: Sequence[str], where: str, *, blank: bool = False) -> str:
    for field in fields:
        if field not in row:
            continue
        value = row[field]
        if field == "id" and isinstance(value, int):
            return str(value)
        if not isinstance(value, str) or not (blank or value.strip()):
            kind = "blank" if isinstance(value, str) else printable(repr(value))
            raise ValueError(f"{where}: '{field}' is {kind}; text was expected.")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can escape one half of a surrogate pair
            raise ValueError(f"{where}: '{field}' is not valid Unicode: {error}.") from error
        return value
    raise ValueError(
        f"{where} has no field '{fields[0]}'; it has: {printable(', '.join(row)) or 'no field'}."
    )


def _language(row: dict[str, Any], where: str) -> str:
    given = _text(row, ("language",), where)
    try:
        return find_code(given, row.get("script"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_ids(texts: Iterable[Prompt], path: str | Path) -> None:
    seen = set()
    for text in texts:
        key = (text.language, text.id)
        if key in seen:
            raise ValueError(
                f"{path} has id {printable(text.id)} in '{text.language}' twice; ids must be "
                "unique within a language."
            )
        seen.add(key)


def _wanted(
    present: Iterable[str], languages: str | LanguageSet | None, path: str | Path
) -> list[str]:
    present = list(present)
    if languages is None:
        return present
    named = languages if isinstance(languages, LanguageSet) else language_set(languages)
    if missing := [code for code in named.weights if code not in present]:
        raise ValueError(
            f"{path} has no prompt in {', '.join(missing)}; it has: {', '.join(present)}. Ask for "
            "those (--languages), or add prompts."
        )
    return list(named.weights)
