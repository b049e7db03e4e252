"""Gemma 3n: four streams between blocks (altup), keys and values of earlier blocks in later ones.

llama.cpp's graph (``src/models/gemma3n.cpp``) has the sizes of the two published models in it.
"""

from statistics import NormalDist
from typing import Any

from torch import Tensor, cat

from mlcalib.formats._gguf_family import TANH_GELU, GgufFamily, Values

_SIZES = {
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "hidden_size_per_layer_input": 256,
    "laurel_rank": 64,
}
_WITH_KEYS, _SPARSE, _SPARSITY = 20, 10, 0.95
"""Blocks that have keys and values, and that keep few hidden units: those above a quantile."""


def _gemma3n(config: Any) -> Values:
    quantile = NormalDist().inv_cdf
    return {
        "feed_forward_length": config.intermediate_size[0],
        "altup.active_idx": config.altup_active_idx,
        "altup.num_inputs": config.altup_num_inputs,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "activation_sparsity_scale": [
            quantile(each) if each else float("-inf") for each in config.activation_sparsity_pattern
        ],
    }


def _gemma3n_limits(config: Any) -> str | None:
    for name, value in _SIZES.items():
        if getattr(config, name) != value:
            return f"{name}={getattr(config, name)} (it takes {value})"
    if config.num_hidden_layers - config.num_kv_shared_layers != _WITH_KEYS:
        return f"keys and values in other blocks than the first {_WITH_KEYS}"
    if config.layer_types[_WITH_KEYS - 2 : _WITH_KEYS] != ["sliding_attention", "full_attention"]:
        return "other blocks whose keys and values later ones read"
    few = [_SPARSITY] * _SPARSE + [0.0] * (config.num_hidden_layers - _SPARSE)
    if list(config.activation_sparsity_pattern) != few:
        return f"few hidden units in other blocks than the first {_SPARSE}"
    if len(set(config.intermediate_size)) > 1:
        return "MLPs of several sizes"
    return None if config.altup_correct_scale else "altup_correct_scale=False"


def _every_token(name: str, values: Tensor, config: Any) -> Tensor:
    """Give tokens without an embedding for each block that of the first, as transformers does."""
    if not name.endswith("embed_tokens_per_layer.weight"):
        return values
    return cat([values, values[:1].expand(config.vocab_size - len(values), -1)])


def _unread(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the tensors of keys and values of blocks that read those of earlier ones."""
    size = config.head_dim
    shape = (config.num_key_value_heads * size, config.hidden_size)
    found: dict[str, tuple[int, ...]] = {}
    for block in range(_WITH_KEYS, config.num_hidden_layers):
        found |= {f"blk.{block}.attn_{part}.weight": shape for part in "kv"}
        found[f"blk.{block}.attn_k_norm.weight"] = (size,)
    return found


GEMMA_FAMILIES = {
    "Gemma3nForCausalLM": GgufFamily(
        "gemma3n",
        rows=_every_token,
        slides=True,
        head="tied",
        ropes=("default",),
        activations=TANH_GELU,
        more=lambda config: {
            **_gemma3n(config),
            "final_logit_softcapping": float(config.final_logit_softcapping),
        },
        unlike=_gemma3n_limits,
        names={".correct_output_scale": ".correct_output_scale.weight"},
        unread=_unread,
    ),
}
