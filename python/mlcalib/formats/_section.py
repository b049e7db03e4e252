"""Checks of a ``quantization_config`` that is a flat table of options, as GPTQ's and AWQ's are."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

Problem = tuple[Literal["error", "warning"], str]
"""How bad it is, and what it is."""


def check_keys(config: Mapping[str, Any], known: Collection[str]) -> Iterator[Problem]:
    """Yield a warning of keys that are not known."""
    if strange := sorted(set(config) - set(known)):
        yield (
            "warning",
            f"quantization_config has keys that readers do not know: {', '.join(strange)}",
        )


def check_sizes(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield bits and group sizes, under their names in AutoGPTQ or AutoAWQ, that cannot be."""
    for keys, low, high in ((("bits", "w_bit"), 2, 8), (("group_size", "q_group_size"), 1, 2**20)):
        value = next((config[key] for key in keys if key in config), None)
        whole = type(value) is int and low <= value <= high
        if not whole and not (value == -1 and low == 1):
            yield "error", f"quantization_config has {keys[0]} {value!r}"


def check_flags(config: Mapping[str, Any], flags: Collection[str]) -> Iterator[Problem]:
    """Yield flags that are neither true nor false."""
    for key in flags:
        if not isinstance(config.get(key), bool):
            value = config.get(key)
            yield "error", f"quantization_config has {key} {value!r}; vLLM needs true or false"
