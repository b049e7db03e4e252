"""How long a text a model can take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcalib.common.hub import split_revision

DEFAULT_SEQ_LEN = 512
"""The length of sequences that nobody asked for, unless a model's context is shorter."""

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
_STRETCHED = ("rope_parameters", "rope_scaling")


def check_context(model: str, config: Mapping[str, Any], seq_len: int) -> None:
    """Refuse sequences that are longer than the context of a model.

    Args:
        model: the name of the model, for the message.
        config: the content of its ``config.json``; if that has no length, nothing is refused.
        seq_len: the number of tokens of a sequence.

    Raises:
        ValueError: ``seq_len`` is above the context length; the message says what that is.
    """
    length = context_length(config)
    if length is not None and seq_len > length:
        raise ValueError(
            f"seq_len is {seq_len:,}, but {model} has a context of {length:,} tokens; give "
            f"--seq-len {length} (seq_len={length}) or less."
        )


def read_config(source: str) -> dict[str, Any]:
    """Return the config of a model: of a folder, a hub name or a GGUF file.

    Raises:
        OSError: there is no config.
    """
    from transformers import PreTrainedConfig

    path = Path(source)
    config: dict[str, Any]
    if path.suffix == ".gguf":
        config, _ = PreTrainedConfig.get_config_dict(str(path.parent), gguf_file=path.name)
    else:
        name, revision = split_revision(source)
        config, _ = PreTrainedConfig.get_config_dict(name, **revision)
    return config


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens that a model can take; None if its config does not say."""
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    stated = [config[key] for key in _LENGTHS if isinstance(config.get(key), int)]
    if not stated:
        return None
    length = int(stated[0])
    for key in _STRETCHED:  # YaRN and its like: a multiple of what the model was trained with
        rope = config.get(key)
        if isinstance(rope, Mapping) and isinstance(rope.get("factor"), int | float):
            trained = rope.get("original_max_position_embeddings") or length
            length = max(length, int(trained * rope["factor"]))
    return length
