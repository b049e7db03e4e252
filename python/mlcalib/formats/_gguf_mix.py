"""The types that llama.cpp's mixes give the linears of a model of transformers."""

from typing import Any

from mlcalib.common.gguf_types import MixedModel
from mlcalib.formats._gguf_families import EXPERT_COUNTS, family_of
from mlcalib.formats._gguf_tensors import stored_name
from mlcalib.models import gguf_architectures
from mlcalib.models.base import GgufArchitecture


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
    family = family_of(architecture)
    known = gguf_architectures().get(architecture)
    if family is not None:
        known = GgufArchitecture(family.name)
    if known is None:
        raise NotImplementedError(
            f"mix '{mix}' chooses types by llama.cpp's names of tensors, which mlcalib does not "
            f"know for {architecture}; give bits, group_size, symmetric, super_block and scale_bits"
        )
    text = config.get_text_config()
    names = known.tensor_names(text.num_hidden_layers)
    saved = stored_name(f"{linear}.weight", family.names if family else {}, names)
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
        next((found for key in EXPERT_COUNTS if (found := getattr(text, key, None))), 0),
    )
    return model.type_of(mix, saved, columns)
