"""JSON from outside, in bounded depth."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

MAX_DEPTH = 100
"""Levels of lists and objects in each other; serde_json, which others read with, has 128."""

_DECODER = json.JSONDecoder()
_BLANKS = " \t\n\r"
_SIGNS = {sign: re.compile(f"[{_BLANKS}]*{re.escape(sign)}[{_BLANKS}]*") for sign in "{:,}[]"}


def loads(text: str | bytes) -> Any:
    """Return what a JSON text says.

    What is not too deep here can be walked by recursion, printed and written again.

    Raises:
        ValueError: it is no JSON, or nested more deeply than ``MAX_DEPTH``.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    if _openings(text) > MAX_DEPTH and _is_deep(content):
        raise _too_deep()
    return content


def members(text: str) -> Iterator[tuple[str, Any]]:
    """Give the names and values of a JSON object, of which one at a time is held.

    Raises:
        ValueError: it is no JSON, no object, or nested more deeply than ``MAX_DEPTH``.
    """
    at = _past("{", text, 0)
    end = _SIGNS["}"].match(text, at)
    while not end:
        name, at = _value(text, at)
        if not isinstance(name, str):
            raise json.JSONDecodeError("Expecting a name in double quotes", text, at)
        value, at = _value(text, _past(":", text, at))
        yield name, value
        end = _SIGNS["}"].match(text, at)
        at = at if end else _past(",", text, at)
    if end.end() < len(text):
        raise json.JSONDecodeError("Extra data", text, end.end())


def items(pieces: Iterable[str]) -> Iterator[Any]:
    """Give the items of a JSON array out of the pieces of its text, of which few are held.

    Raises:
        json.JSONDecodeError: what follows the items given so far is no JSON, no array, or nested
            more deeply than ``MAX_DEPTH``.
    """
    pieces = iter(pieces)
    text = next((begun for piece in pieces if (begun := piece.lstrip(_BLANKS))), "")
    at = _past("[", text, 0)
    first = True
    while True:
        try:
            if end := _SIGNS["]"].match(text, at):
                break
            value, after = _value(text, at if first else _past(",", text, at))
            if after == len(text):  # a number may go on
                raise json.JSONDecodeError("Expecting ',' or ']'", text, after)
        except ValueError as error:  # which holds the text as long as it is there
            wrong = getattr(error, "msg", str(error))
        else:
            yield value
            at, first = after, False
            continue
        more = _as_much(pieces, len(text) - at)
        if not more:
            raise json.JSONDecodeError(wrong, text, at)
        more.insert(0, text[at:])
        text, at = "", 0  # before it is joined: a long item is not to be there three times
        text = "".join(more).lstrip(_BLANKS)
        del more
    if text[end.end() :] or any(piece.strip(_BLANKS) for piece in pieces):
        raise json.JSONDecodeError("Extra data", text, end.end())


def _as_much(pieces: Iterator[str], size: int) -> list[str]:
    """Return pieces of so many characters together, so that a long item is tried a few times."""
    taken: list[str] = []
    while size >= 0 and (piece := next(pieces, "")):
        taken.append(piece)
        size -= len(piece)
    return taken


def _past(sign: str, text: str, at: int) -> int:
    """Return where what follows a sign begins."""
    found = _SIGNS[sign].match(text, at)
    if found is None:
        raise json.JSONDecodeError(f"Expecting '{sign}'", text, at)
    return found.end()


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return a value inside a list or an object, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise _too_deep() from error
    if _openings(text, at, end) >= MAX_DEPTH and _is_deep([value]):
        raise _too_deep()
    return value, end


def _openings(text: str | bytes, start: int = 0, end: int | None = None) -> int:
    """Return how often a list or an object may begin, which is as deep as a text can be."""
    if isinstance(text, str):
        return text.count("[", start, end) + text.count("{", start, end)
    return text.count(b"[", start, end) + text.count(b"{", start, end)


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        values = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for inside in values for value in inside if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
