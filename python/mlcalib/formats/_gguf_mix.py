"""The types that llama.cpp's mixes give the linears of a model of transformers."""

import re
from typing import Any

from mlcalib.common.gguf_types import MixedModel
from mlcalib.models import gguf_architectures

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def type_in_mix(mix: str, config: Any, architecture: str, linear: str, columns: int) -> str:
    """Return the type of a linear; see ``MixedModel.type_of``.

    Args:
        mix: e.g. ``Q4_K_M``.
        config: the model's.
        architecture: its class in transformers.
        linear: its name in the model.
        columns: its input channels.

    Raises:
        NotImplementedError: llama.cpp's names of the model's tensors are not known.
        ImportError: the package gguf is missing.
    """
    known = gguf_architectures().get(architecture)
    if known is None:
        raise NotImplementedError(
            f"mix '{mix}' chooses types by llama.cpp's names of tensors, which mlcalib does not "
            f"know for {architecture}; give bits, group_size, symmetric, super_block and scale_bits"
        )
    text = config.get_text_config()
    names = known.tensor_names(text.num_hidden_layers)
    # Experts are one tensor in a file: those of a block have one type.
    stacked = re.sub(r"\.experts\.\d+\.", ".experts.", linear)
    saved = names.get_name(stacked) or names.get_name(linear)
    if saved is None:
        raise NotImplementedError(
            f"mix '{mix}': {linear} has no name in GGUF files of {architecture}"
        )
    heads = text.num_attention_heads
    model = MixedModel(
        known.name,
        text.num_hidden_layers,
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        next((found for key in _EXPERTS if (found := getattr(text, key, None))), 0),
    )
    return model.type_of(mix, f"{saved}.weight", columns)
