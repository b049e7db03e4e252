"""Models small enough to run in milliseconds, with every weight random."""

from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

_MOE = {"num_experts_per_tok": 2, "output_router_logits": False}
_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
_QWEN_MOE = {**_MOE, "num_experts": 6, "moe_intermediate_size": 32}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    "qwen2": ("Qwen2", _SLIDING),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "gemma2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 40, "sliding_window": 8}),
    "cohere": ("Cohere", {"use_qk_norm": True}),
    "cohere2": ("Cohere2", {"sliding_window": 8, "sliding_window_pattern": 2}),
    "olmo2": ("Olmo2", {}),
    "mixtral": ("Mixtral", {**_MOE, "num_local_experts": 4, "sliding_window": 8}),
    "qwen2_moe": (
        "Qwen2Moe",
        {**_QWEN_MOE, **_SLIDING, "num_experts": 12, "shared_expert_intermediate_size": 96},
    ),
    "qwen3_moe": ("Qwen3Moe", {**_QWEN_MOE, "head_dim": 16, "decoder_sparse_step": 2}),
}
"""Name → prefix of the classes in transformers, and what a config says beyond the sizes.

Windows are shorter than a sequence; where blocks can differ (full or sliding attention, experts or
none), the two do.
"""


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {"arcee": ("Arcee", {})}
"""As ``ARCHITECTURES``, of families that mlcalib does not know by itself."""


def tiny_llama(
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    seed: int = 0,
    hidden: int = 64,
    intermediate: int = 128,
    layers: int = 2,
    vocabulary: int = 128,
) -> LlamaForCausalLM:
    """Return a Llama with grouped-query attention. Norms are random too: ones would hide errors."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _random(LlamaForCausalLM, config, dtype, seed)


def save_tiny_llama(folder: Any, tokenizer: Any) -> Any:
    """Save a tiny Llama with a tokenizer into a folder; return the folder."""
    tiny_llama(vocabulary=384).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, vocabulary: int = 128
) -> PreTrainedModel:
    """Return a model of ``ARCHITECTURES`` or ``OTHERS``: 2 blocks, grouped-query attention."""
    prefix, options = (ARCHITECTURES | OTHERS)[name]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        **options,
    )
    return _random(getattr(transformers, f"{prefix}ForCausalLM"), config, dtype, seed)


def _random(cls: Any, config: Any, dtype: torch.dtype, seed: int) -> Any:
    """Return a model whose weights, biases and norms are all random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        # Gemma's norms are 1 + weight.
        ones = 0.0 if config.model_type.startswith("gemma") else 1.0
        for name, parameter in model.named_parameters():
            centre = ones if "norm" in name and name.endswith("weight") else 0.0
            # Not model.to(dtype): it would round the rotary frequencies, which loaders keep exact.
            parameter.data = parameter.data.normal_(centre, 0.1).to(dtype)
    model.config.dtype = dtype
    return model.eval()
