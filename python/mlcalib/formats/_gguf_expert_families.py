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


def _step(config: Any) -> Values:
    """Return what Step 3.7 has; its graph halves the channels that turn where blocks see all."""
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    heads, sliding_heads = config.num_attention_heads, config.num_sliding_attention_heads
    found = experts(config) | {
        "attention.head_count": [sliding_heads if each else heads for each in slides],
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "expert_shared_feed_forward_length": config.share_expert_dim,
        "expert_weights_scale": float(config.moe_router_scaling_factor),
        "expert_weights_norm": True,
        "expert_gating_func": SIGMOID,
    }
    for limits, key in (
        (config.swiglu_limits, "swiglu_clamp_exp"),
        (config.swiglu_limits_shared, "swiglu_clamp_shexp"),
    ):
        if limits:
            found[key] = [float(limit or 0) for limit in limits]
    return found


def _step_limits(config: Any) -> str | None:
    if set(config.layer_types) != {"full_attention", "sliding_attention"}:
        return "blocks that are all alike"
    given = config.rope_parameters
    shares = [
        given[kind].get("partial_rotary_factor", 1.0)
        for kind in ("full_attention", "sliding_attention")
    ]
    if shares != [0.5, 1.0]:
        return f"partial_rotary_factor of {shares}"
    if config.query_pre_attn_scalar != config.head_dim:
        return f"query_pre_attn_scalar={config.query_pre_attn_scalar}"
    shared = config.swiglu_limits_shared or []
    if any(
        limit
        for limit, kind in zip(shared, config.mlp_layer_types, strict=False)
        if kind == "dense"
    ):
        return "limits of blocks without experts"
    return None


def _mimo(config: Any) -> Values:
    """Return what MiMo has: twice as many heads of keys and values in blocks that slide."""
    heads = config.num_key_value_heads
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    found = experts(config) | {
        "attention.head_count_kv": [2 * heads if each else heads for each in slides],
        "attention.key_length": config.head_dim,
        "attention.value_length": config.v_head_dim,
        "attention.value_scale": float(config.attention_value_scale or 1.0),
    }
    if config.n_group > 1:
        found["expert_group_count"] = config.n_group
        found["expert_group_used_count"] = config.topk_group
    return found


def _mimo_limits(config: Any) -> str | None:
    if set(config.layer_types) != {"full_attention", "sliding_attention"}:
        return "blocks that are all alike"
    shares = {each.get("partial_rotary_factor") for each in config.rope_parameters.values()}
    if len(shares) > 1:
        return f"partial_rotary_factor of {sorted(shares)}"
    if not config.norm_topk_prob or config.routed_scaling_factor != 1.0:
        return "weights of experts that do not sum to 1"
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
    "MiMoV2FlashForCausalLM": GgufFamily(
        "mimo2",
        head="own",
        slides=True,
        more=_mimo,
        unlike=_mimo_limits,
        names=CORRECTION | {".sinks": ".sinks.weight"},
    ),
    "Step3p7ForConditionalGeneration": GgufFamily(
        "step35",
        head="own",
        norm_offset=1.0,
        slides=True,
        ropes=("default", "llama3"),
        more=_step,
        unlike=_step_limits,
        names=CORRECTION,
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
