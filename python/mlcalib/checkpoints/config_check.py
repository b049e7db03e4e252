"""config.json: values that a model can have."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from mlcalib.common import compat
from mlcalib.formats import Problem
from mlcalib.models import families

_LIMITS = {
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**26,
    "max_position_embeddings": 2**40,
}

_SIZED = {
    "intermediate_size": "mlp.gate_proj",
    "num_attention_heads": "self_attn.q_proj",
    "num_key_value_heads": "self_attn.k_proj",
    "head_dim": "self_attn.q_proj",
    "hidden_size": "self_attn.q_proj",
}


def check_config(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[Problem]:
    """Yield values of config.json that no model has, or that no model of its family has.

    Args:
        config: its content.
        shapes: of the tensors, for messages.
    """
    for key, limit in _LIMITS.items():
        value = config.get(key)
        listed = isinstance(value, list) and len(value) > 0
        for each in value if isinstance(value, list) and listed else [value]:
            if each is not None and (type(each) is not int or not 1 <= each <= limit):
                yield (
                    "damaged",
                    f"config.json has {key} {value!r}; expected a whole number of 1 to {limit}",
                )
                break
        else:
            if listed and known_family(config):
                yield (
                    "unread",
                    f"config.json has {key} {value!r}, a value for each layer"
                    f"{_sizes(key, shapes or {})}; {config['architectures'][0]} of transformers "
                    "has one for all",
                )
    yield from _check_class(config)


def _sizes(key: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say which sizes tensors have that a key is about."""
    part = _SIZED.get(key, "")
    sizes: dict[tuple[int, ...], str] = {}
    for name, shape in shapes.items():
        if part and name.endswith(f"{part}.weight"):
            sizes.setdefault(shape, name)
    said = ", ".join(f"{name} is {list(shape)}" for shape, name in list(sizes.items())[:3])
    return f" ({said})" if said else ""


def _check_class(config: Mapping[str, Any]) -> Iterator[Problem]:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        found = f"config.json has architectures {architectures!r}; expected the model's class"
        named = architectures in (None, []) and isinstance(config.get("model_type"), str)
        yield ("refused", f"vLLM, SGLang: {found}") if named else ("damaged", found)
    kind = config.get("model_type")
    if isinstance(kind, str) and not config.get("auto_map") and not compat.knows_type(kind):
        yield (
            "unread",
            f"config.json has model_type {kind!r}, which this release of transformers does not "
            "have; a newer one may (pip install -U transformers)",
        )
    if config.get("auto_map"):
        import transformers

        name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
        if hasattr(transformers, name):
            yield (
                "note",
                f"config.json has an auto_map; its code was not run, and readers that have {name} "
                "of their own need no trust_remote_code",
            )
        else:
            yield (
                "unread",
                f"config.json has an auto_map, and transformers has no {name!r}: the model is code "
                "of the checkpoint, which only mlcalib.quantize(..., trust_remote_code=True) runs",
            )


def known_family(config: Mapping[str, Any]) -> bool:
    """Return whether the model is of a family of mlcalib's own, so that its tensors are known."""
    architectures = config.get("architectures")
    return (
        isinstance(architectures, list)
        and architectures[:1] != []
        and (str(architectures[0]) in _known_classes())
    )


@cache
def _known_classes() -> frozenset[str]:
    modules = pkgutil.iter_modules(families.__path__, f"{families.__name__}.")
    found = (importlib.import_module(module.name).adapter for module in modules)
    return frozenset(name for adapter in found for name in adapter.architectures)
