"""The ``quantization_config`` of compressed-tensors: groups of linears with one scheme each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def section_of(
    layout: str, groups: Sequence[Mapping[str, Any]], ignore: list[str]
) -> dict[str, Any]:
    """Return a section, the same for transformers and vLLM.

    Args:
        layout: the ``format``, of the checkpoint.
        groups: a config group for each grid.
        ignore: linears that stay in floating point.
    """
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "ignore": ignore,
    }


def stated_weights(config: Mapping[str, Any], *keys: str) -> Iterator[tuple[Any, ...]]:
    """Yield what each group of a section says of its weights; None for what it does not say.

    Args:
        config: the section; one without groups says nothing, as one group.
        keys: e.g. ``num_bits`` or ``strategy``.
    """
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else [{}]:
        weights = group.get("weights") or {}
        yield tuple(weights.get(key) for key in keys)
