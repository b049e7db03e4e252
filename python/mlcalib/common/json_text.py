"""JSON from outside, in bounded depth."""

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 100
"""Levels of lists and objects in each other; serde_json, which others read with, has 128."""

_DECODER = json.JSONDecoder()
_BLANK = r"[ \t\n\r]*"
_SIGNS = {sign: re.compile(rf"{_BLANK}{re.escape(sign)}{_BLANK}") for sign in "{:,}"}


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
    if _openings(text[at:end]) >= MAX_DEPTH and _is_deep([value]):
        raise _too_deep()
    return value, end


def _openings(text: str | bytes) -> int:
    """Return how often a list or an object may begin, which is as deep as a text can be."""
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


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
