"""config.json: values that a model can have."""

from collections.abc import Iterator, Mapping
from typing import Any

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


def check_config(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield values of config.json that no model has."""
    for key, limit in _LIMITS.items():
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= limit:
            yield f"config.json has {key} {value!r}; expected a whole number of 1 to {limit}"
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        yield f"config.json has architectures {architectures!r}; expected the model's class"
    if config.get("auto_map"):
        yield (
            "config.json has an auto_map: readers would need trust_remote_code; its code was not "
            "run, remove the key if transformers knows the architecture"
        )
