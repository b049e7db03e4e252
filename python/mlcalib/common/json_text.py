"""JSON from outside, in bounded depth."""

import json
from typing import Any

MAX_DEPTH = 100
"""Levels of lists and objects in each other; serde_json, which others read with, has 128."""


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
