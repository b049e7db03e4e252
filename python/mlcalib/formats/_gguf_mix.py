"""The types that llama.cpp's mixes give the linears of a model of transformers."""

from collections.abc import Callable
from typing import Any

from mlcalib.common.gguf_types import MixedModel
from mlcalib.formats._gguf_family import EXPERT_COUNTS
from mlcalib.formats._gguf_inside import language_config
from mlcalib.formats._gguf_names import architecture_name, gguf_names


def types_in_mix(mix: str, config: Any, architecture: str) -> Callable[[str, int], str]:
    """Return what tells the type of a linear, by its name in the model and its input channels.

    See ``MixedModel.type_of``. It raises NotImplementedError for a linear that has no name in GGUF
    files.

    Args:
        mix: e.g. ``Q4_K_M``.
        config: the model's.
        architecture: its class in transformers.

    Raises:
        NotImplementedError: llama.cpp's names of the model's tensors are not known.
        ImportError: the package gguf is missing.
    """
    if (known := architecture_name(config, architecture)) is None:
        raise NotImplementedError(
            f"mix '{mix}' chooses types by llama.cpp's names of tensors, which mlcalib does not "
            f"know for {architecture}; give bits, group_size, symmetric, super_block and scale_bits"
        )
    text = language_config(config)
    name_of = gguf_names(config, architecture)
    heads = text.num_attention_heads
    model = MixedModel(
        known,
        text.num_hidden_layers,
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        next((found for key in EXPERT_COUNTS if (found := getattr(text, key, None))), 0),
    )

    def type_of(linear: str, columns: int) -> str:
        return model.type_of(mix, name_of(linear), columns)

    return type_of
