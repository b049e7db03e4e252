"""Checks of a ``quantization_config`` that is a flat table of options, as GPTQ's and AWQ's are."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Kind = Literal["damaged", "unread", "refused"]
"""Damaged; whole, but mlcalib cannot read it; whole, but readers that the message names cannot."""

Problem = tuple[Kind | Literal["note"], str]
"""What kind of finding, or a note that keeps nobody from reading; and what it is."""


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Turn what a section of other types than a tool's raises, inside, into an error that says so.

    Raises:
        ValueError: names the folder.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, re.error) as error:
        raise ValueError(
            f"{folder} has a quantization_config that no tool writes: {type(error).__name__}: "
            f"{error}"
        ) from error


def check_keys(config: Mapping[str, Any], known: Collection[str]) -> Iterator[Problem]:
    """Yield a note of keys that are not known."""
    if strange := sorted(set(config) - set(known)):
        yield (
            "note",
            f"quantization_config has keys that readers do not know: {', '.join(strange)}",
        )


def check_sizes(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield bits and group sizes, under their names in AutoGPTQ or AutoAWQ, that cannot be."""
    for keys, low, high in ((("bits", "w_bit"), 2, 8), (("group_size", "q_group_size"), 1, 2**20)):
        value = next((config[key] for key in keys if key in config), None)
        whole = type(value) is int and low <= value <= high
        if not whole and not (value == -1 and low == 1):
            yield "damaged", f"quantization_config has {keys[0]} {value!r}"


def check_flags(config: Mapping[str, Any], flags: Collection[str]) -> Iterator[Problem]:
    """Yield flags that are missing, or neither true nor false."""
    for key in flags:
        if key not in config:
            yield "refused", f"vLLM, SGLang: quantization_config has no {key}, which they need"
        elif not isinstance(value := config[key], bool):
            yield "damaged", f"quantization_config has {key} {value!r}; vLLM needs true or false"
