"""Mixtures of experts."""

from dataclasses import replace
from typing import Any

from mlcalib.formats._gguf_family import (
    FREQUENCIES,
    LLAMA,
    QWEN,
    GgufFamily,
    Values,
    clamped,
    deepstack,
    experts,
    granite,
    no_positions_every_fourth,
)

BLOCK_SPARSE = {
    ".block_sparse_moe.experts.": ".mlp.experts.",
    ".router.weight": ".router.layer.weight",
}
SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE of src/llama-hparams.h
CORRECTION = {"e_score_correction_bias": "e_score_correction.bias"}
EXPERT_BIAS = {".expert_bias": ".expert_bias.bias"}
SHARED_MLP = {
    "shared_mlp.input_linear": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
}
"""The parts of the experts that read all tokens in Granite's mixtures."""


def with_shared_expert(config: Any) -> Values:
    """Return what a mixture has beside one expert that reads all tokens, of its own width."""
    shared = {"expert_shared_feed_forward_length": config.shared_expert_intermediate_size}
    return experts(config) | shared


def every_block_has_experts(config: Any, normed: bool) -> str | None:
    """Refuse blocks without experts, and other weights of experts than the published models'."""
    if config.decoder_sparse_step != 1 or config.mlp_only_layers:
        return "blocks without experts among those that have some"
    if getattr(config, "norm_topk_prob", normed) != normed:
        return f"norm_topk_prob={config.norm_topk_prob}"
    return None


def _gpt_oss(config: Any) -> str | None:
    if (limit := getattr(config, "swiglu_limit", 7.0)) != 7.0:
        return f"swiglu_limit={limit}"
    return None if config.attention_bias else "attention without biases"


def as_many_heads(config: Any) -> str | None:
    """Refuse heads of queries that share keys and values."""
    if config.num_key_value_heads != config.num_attention_heads:
        return "fewer heads of keys and values than of queries"
    return None


def _olmoe(config: Any) -> str | None:
    if config.norm_topk_prob:
        return "norm_topk_prob=True"
    return "clipped q, k and v" if config.clip_qkv is not None else as_many_heads(config)


def _granite_moe(config: Any) -> Values:
    found = granite(config) | experts(config)
    if shared := getattr(config, "shared_intermediate_size", 0):
        found["expert_shared_feed_forward_length"] = shared
    return found


def _ernie(config: Any) -> Values:
    found = experts(config) | {
        "interleave_moe_layer_step": config.moe_layer_interval,
        "leading_dense_block_count": config.moe_layer_start_index,
        "expert_shared_count": config.moe_num_shared_experts,
    }
    if shared := config.moe_num_shared_experts:
        width = shared * config.moe_intermediate_size
        found["expert_shared_feed_forward_length"] = width
    return found


def _ernie_limits(config: Any) -> str | None:
    if config.moe_layer_end_index not in (-1, config.num_hidden_layers - 1):
        return f"moe_layer_end_index={config.moe_layer_end_index}"
    return None


def _hunyuan(config: Any) -> Values:
    shared = {"expert_shared_feed_forward_length": config.intermediate_size}
    return experts(config) | shared | {"expert_feed_forward_length": config.intermediate_size}


def _dbrx(config: Any) -> Values:
    found: Values = {
        "feed_forward_length": config.ffn_config.ffn_hidden_size,
        "attention.head_count_kv": config.attn_config.kv_n_heads,
        "attention.layer_norm_epsilon": 1e-5,
        "expert_count": config.ffn_config.moe_num_experts,
        "expert_used_count": config.ffn_config.moe_top_k,
    }
    return found | clamped(config.attn_config.clip_qkv)


def _dbrx_limits(config: Any) -> str | None:
    if config.attn_config.clip_qkv is None:
        return "q, k and v that are not clipped"
    if config.ffn_config.moe_normalize_expert_weights != 1.0:
        return "weights of experts that do not sum to 1"
    return None


def _llama4(config: Any) -> Values:
    return experts(config) | {
        "feed_forward_length": config.intermediate_size_mlp,
        "expert_feed_forward_length": config.intermediate_size,
        "interleave_moe_layer_step": config.interleave_moe_layer_step,
    }


def _llama4_limits(config: Any) -> str | None:
    """Refuse what is not in the two published models."""
    blocks, step = range(config.num_hidden_layers), config.interleave_moe_layer_step
    if (other := no_positions_every_fourth(config)) is not None:
        return other
    if list(config.moe_layers) != [block for block in blocks if (block + 1) % step == 0]:
        return f"experts in other blocks than every {step}"
    chosen = (config.attention_chunk_size, config.floor_scale, config.attn_scale)
    if chosen != (8192, 8192, 0.1) or not config.attn_temperature_tuning:
        return f"attention in chunks of {chosen[0]}, or scaled otherwise"
    if config.use_qk_norm != (config.num_local_experts != 128):
        return f"use_qk_norm={config.use_qk_norm}"
    return None


EXPERT_FAMILIES = {
    "Llama4ForCausalLM": GgufFamily(
        "llama4",
        more=_llama4,
        unlike=_llama4_limits,
        kinds=("chunked_attention",),
        ropes=FREQUENCIES,
    ),
    "DbrxForCausalLM": GgufFamily(
        "dbrx",
        head="own",
        more=_dbrx,
        unlike=_dbrx_limits,
        names={
            f".ffn.experts.{ours}": f".ffn.experts.mlp.{theirs}"
            for ours, theirs in (("gate_proj", "w1"), ("up_proj", "v1"), ("down_proj", "w2"))
        },
    ),
    "GraniteMoeForCausalLM": replace(
        LLAMA, name="granitemoe", more=_granite_moe, names=BLOCK_SPARSE
    ),
    "GraniteMoeSharedForCausalLM": replace(
        LLAMA,
        name="granitemoe",
        more=_granite_moe,
        names=BLOCK_SPARSE,
        splits=SHARED_MLP,
    ),
    "Ernie4_5_MoeForCausalLM": GgufFamily(
        "ernie4_5-moe",
        more=_ernie,
        unlike=_ernie_limits,
        names=CORRECTION | {".gate.moe_statics.": ".moe_statics."},
    ),
    "MiniMaxM2ForCausalLM": GgufFamily(
        "minimax-m2",
        head="own",
        more=lambda config: experts(config) | {"expert_gating_func": SIGMOID},
        names={
            **CORRECTION,
            ".mlp.gate.": ".block_sparse_moe.gate.",
            ".mlp.e_": ".block_sparse_moe.e_",
        },
    ),
    "HunYuanMoEV1ForCausalLM": GgufFamily("hunyuan-moe", more=_hunyuan),
    "MixtralForCausalLM": replace(
        LLAMA, more=experts, biases=(), names={".mlp.": ".block_sparse_moe."}
    ),
    "Qwen2MoeForCausalLM": replace(
        QWEN,
        name="qwen2moe",
        head="own",
        more=with_shared_expert,
        unlike=lambda config: every_block_has_experts(config, False),
    ),
    "Qwen3MoeForCausalLM": replace(
        QWEN,
        name="qwen3moe",
        more=experts,
        unlike=lambda config: every_block_has_experts(config, True),
    ),
    "Qwen3VLMoeForConditionalGeneration": replace(
        QWEN,
        name="qwen3vlmoe",
        more=experts,
        beside=deepstack,
        unlike=lambda config: every_block_has_experts(config, True),
    ),
    "GptOssForCausalLM": GgufFamily(
        "gpt-oss",
        head="own",
        slides=True,
        more=experts,
        unlike=_gpt_oss,
        biases=("attention_bias",),
        names={".sinks": ".sinks.weight"},
    ),
    "OlmoeForCausalLM": GgufFamily("olmoe", head="own", more=experts, unlike=_olmoe),
}
