"""The types that llama.cpp's mixes give the linears of a model of transformers."""

from collections.abc import Callable
from typing import Any

from mlcalib.common.gguf_types import MixedModel
from mlcalib.formats._gguf_families import EXPERT_COUNTS, family_of
from mlcalib.formats._gguf_tensors import stored_name
from mlcalib.models import gguf_architectures
from mlcalib.models.base import GgufArchitecture


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
    names, renamed = known.tensor_names(text.num_hidden_layers), family.names if family else {}
    heads = text.num_attention_heads
    model = MixedModel(
        known.name,
        text.num_hidden_layers,
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        next((found for key in EXPERT_COUNTS if (found := getattr(text, key, None))), 0),
    )

    def type_of(linear: str, columns: int) -> str:
        saved = stored_name(f"{linear}.weight", renamed, names)
        if saved is None:
            raise NotImplementedError(
                f"mix '{mix}': {linear} has no name in GGUF files of {architecture}"
            )
        return model.type_of(mix, saved, columns)

    return type_of
