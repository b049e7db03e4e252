"""Changes to files that keep enough of their structure to get past its first check."""

import json
import random
from collections.abc import Callable
from typing import Any

import atheris

Change = Callable[[bytes, random.Random], bytes]
"""Bytes and what to draw from → other bytes."""

_VALUES = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -1.5,
    1e308, float("nan"), float("inf"), "", "a", "0", "\0", "\ud800", "é市🎉", [], {}, [[]], [{}],
    {"": None}, [0], ["a"], [None], {"a": 1},
]  # fmt: skip
_COUNTS = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    12,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
]


def raw(data: bytes, draw: random.Random) -> bytes:
    """Change bytes as libFuzzer does."""
    return bytes(atheris.Mutate(data, max(2 * len(data), 64)))


def json_value(data: bytes, draw: random.Random) -> bytes:
    """Change one value, key or number of a JSON text; sometimes bytes."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return raw(data, draw)
    if draw.random() < 0.1:
        return raw(data, draw)
    if draw.random() < 0.02:
        return _deep(draw)
    holder = [content]
    _change(*draw.choice(list(_places(holder, 0, 0))), draw)
    try:
        return json.dumps(holder[0], ensure_ascii=draw.random() < 0.5).encode("utf-8", "replace")
    except RecursionError:
        return data


def json_lines(data: bytes, draw: random.Random) -> bytes:
    """Change, double or remove a line of JSON lines; sometimes bytes."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    kind = draw.random()
    if kind < 0.1:
        return raw(data, draw)
    if kind < 0.2:
        lines.insert(at, draw.choice(lines))
    elif kind < 0.25:
        del lines[at]
    else:
        lines[at] = json_value(lines[at], draw)
    return b"\n".join(lines)


def count(data: bytes, draw: random.Random, places: list[tuple[int, int]]) -> bytes:
    """Put a remarkable number where a little-endian one of so many bytes stands."""
    at, size = draw.choice(places)
    was = int.from_bytes(data[at : at + size], "little")
    nearby = [was + 1, was - 1, was * 2, was // 2, was ^ 1 << draw.randrange(8 * size)]
    value = draw.choice([*_COUNTS, *nearby, len(data)]) % 2 ** (8 * size)
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def _places(holder: Any, depth: int, key: Any) -> Any:
    """Give all (container, key) of a JSON value."""
    pairs = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    for name, value in pairs:
        yield holder, name
        if isinstance(value, dict | list) and depth < 50:
            yield from _places(value, depth + 1, name)


def _change(holder: Any, key: Any, draw: random.Random) -> None:
    value, kind = holder[key], draw.random()
    if kind < 0.1 and isinstance(holder, dict):
        del holder[key]
    elif kind < 0.2 and isinstance(holder, dict):
        holder[draw.choice(["", "a", "\ud800", f"{key}x", *holder])] = holder.pop(key)
    elif kind < 0.3 and isinstance(value, list) and value:
        value.insert(draw.randrange(len(value)), draw.choice(value))
    elif kind < 0.4 and isinstance(value, int) and not isinstance(value, bool):
        holder[key] = value + draw.choice([-1, 1, 8, -8, value])
    elif kind < 0.45:
        holder[key] = [value]
    elif kind < 0.5:
        holder[key] = {"a": value}
    elif kind < 0.6 and isinstance(value, str):
        holder[key] = raw(value.encode("utf-8", "replace"), draw).decode("utf-8", "replace")
    elif kind < 0.65:
        holder[key] = holder[
            draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        ]
    else:
        holder[key] = draw.choice(_VALUES)


def _deep(draw: random.Random) -> bytes:
    """Return a value that is nested deeply, or a number of many digits."""
    depth = draw.choice([90, 120, 500, 900, 980, 5000])
    return draw.choice(
        [
            b"[" * depth + b"]" * depth,
            b'{"a":' * depth + b"1" + b"}" * depth,
            b"[" * depth,
            b"9" * depth,
            b'{"text": ' + b"[" * depth + b"]" * depth + b"}",
        ]
    )
