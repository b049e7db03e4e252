"""Mixtures of experts."""

from dataclasses import replace
from typing import Any

from mlcalib.formats._gguf_config import rope
from mlcalib.formats._gguf_family import (
    FREQUENCIES,
    LLAMA,
    QWEN,
    GgufFamily,
    Values,
    deepstack,
    experts,
    granite,
)

_BLOCK_SPARSE = {
    ".block_sparse_moe.experts.": ".mlp.experts.",
    ".router.weight": ".router.layer.weight",
}
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE of src/llama-hparams.h
CORRECTION = {"e_score_correction_bias": "e_score_correction.bias"}


def _qwen2_moe(config: Any) -> Values:
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


def _as_many_heads(config: Any) -> str | None:
    if config.num_key_value_heads != config.num_attention_heads:
        return "fewer heads of keys and values than of queries"
    return None


def _olmoe(config: Any) -> str | None:
    if config.norm_topk_prob:
        return "norm_topk_prob=True"
    return "clipped q, k and v" if config.clip_qkv is not None else _as_many_heads(config)


def _mla(config: Any) -> Values:
    """Return what attention of low rank has; its keys and values are stored whole."""
    found: Values = {
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
    }
    if config.q_lora_rank is not None:
        found["attention.q_lora_rank"] = config.q_lora_rank
    if rope(config)["rope_type"] == "yarn":  # the scale of attention comes from the multiplier
        multiplier = 0.1 * rope(config)["mscale_all_dim"]
        found["rope.scaling.yarn_log_multiplier"] = multiplier
        found["rope.scaling.attn_factor"] = 1.0
    return found


def _deepseek_v2(config: Any) -> Values:
    return (
        _mla(config)
        | experts(config)
        | {
            "leading_dense_block_count": config.first_k_dense_replace,
            "expert_shared_count": config.n_shared_experts,
            "expert_weights_scale": float(config.routed_scaling_factor),
            "expert_weights_norm": bool(config.norm_topk_prob),
        }
    )


def _youtu(config: Any) -> Values:
    return _mla(config) | {
        "leading_dense_block_count": config.num_hidden_layers,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": 0,
    }


def _deepseek_v2_limits(config: Any) -> str | None:
    if config.topk_method != "greedy":
        return f"topk_method={config.topk_method!r}"
    return _deepseek_limits(config)


def _deepseek_limits(config: Any) -> str | None:
    scales = [rope(config).get(key) for key in ("mscale", "mscale_all_dim")]
    if rope(config)["rope_type"] == "yarn" and (not scales[0] or scales[0] != scales[1]):
        return f"mscale and mscale_all_dim of {scales[0]} and {scales[1]}"
    if config.q_lora_rank is None and config.num_hidden_layers not in (26, 27):
        return f"queries of full rank in {config.num_hidden_layers} blocks"
    return None


def weighted(config: Any, gate: int) -> Values:
    """Return what DeepSeek-V3 and those after it say of experts."""
    found = experts(config) | {
        "expert_gating_func": gate,
        "expert_shared_count": next(
            (found for name in _SHARED if (found := getattr(config, name, None))), 0
        ),
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": bool(config.norm_topk_prob),
        "leading_dense_block_count": getattr(config, "first_k_dense_replace", 0),
    }
    if (config.n_group or 1) > 1:
        found["expert_group_count"] = config.n_group
        found["expert_group_used_count"] = config.topk_group
    return found


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


def _afmoe(config: Any) -> Values:
    return experts(config) | {
        "expert_gating_func": SIGMOID,
        "expert_shared_count": config.num_shared_experts,
        "expert_weights_scale": float(config.route_scale),
        "expert_weights_norm": True,
        "leading_dense_block_count": config.num_dense_layers,
    }


def _afmoe_limits(config: Any) -> str | None:
    if not config.mup_enabled:
        return "mup_enabled=False"
    every_fourth = [(block + 1) % 4 == 0 for block in range(config.num_hidden_layers)]
    if [kind == "full_attention" for kind in config.layer_types] != every_fourth:
        return "full attention in other blocks than every fourth"
    return None


def _leading_dense(config: Any) -> Values:
    kinds = [*config.mlp_layer_types, "sparse"]
    return {"leading_dense_block_count": kinds.index("sparse")}


def _dense_first(config: Any) -> str | None:
    kinds = config.mlp_layer_types
    if kinds != sorted(kinds):
        return "blocks without experts after those that have some"
    return None


def _exaone_moe(config: Any) -> Values:
    shared = {
        "expert_shared_feed_forward_length": config.num_shared_experts
        * config.moe_intermediate_size
    }
    return weighted(config, SIGMOID) | _leading_dense(config) | shared


def _dbrx(config: Any) -> Values:
    found: Values = {
        "feed_forward_length": config.ffn_config.ffn_hidden_size,
        "attention.head_count_kv": config.attn_config.kv_n_heads,
        "attention.layer_norm_epsilon": 1e-5,
        "expert_count": config.ffn_config.moe_num_experts,
        "expert_used_count": config.ffn_config.moe_top_k,
    }
    if (clip := config.attn_config.clip_qkv) is not None:
        found["attention.clamp_kqv"] = float(clip)
    return found


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
    every_fourth = [int((block + 1) % 4 != 0) for block in blocks]
    if list(config.no_rope_layers) != every_fourth:
        return "positions that are left out of other blocks than every fourth"
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
    "AfmoeForCausalLM": GgufFamily(
        "afmoe",
        slides=True,
        more=_afmoe,
        unlike=_afmoe_limits,
        names={".expert_bias": ".expert_bias.bias"},
    ),
    "ExaoneMoeForCausalLM": GgufFamily(
        "exaone-moe",
        slides=True,
        more=_exaone_moe,
        unlike=_dense_first,
        names=CORRECTION,
    ),
    "SolarOpenForCausalLM": GgufFamily(
        "glm4moe",
        head="own",
        more=lambda config: weighted(config, SIGMOID),
        names=CORRECTION,
    ),
    "Glm4MoeLiteForCausalLM": GgufFamily(
        "deepseek2",
        more=lambda config: _mla(config) | weighted(config, SIGMOID) | _leading_dense(config),
        unlike=lambda config: _dense_first(config) or _deepseek_limits(config),
        names=CORRECTION,
    ),
    "YoutuForCausalLM": GgufFamily("deepseek2", more=_youtu, unlike=_deepseek_limits),
    "GraniteMoeForCausalLM": replace(
        LLAMA, name="granitemoe", more=_granite_moe, names=_BLOCK_SPARSE
    ),
    "GraniteMoeSharedForCausalLM": replace(
        LLAMA,
        name="granitemoe",
        more=_granite_moe,
        names=_BLOCK_SPARSE,
        splits={
            "shared_mlp.input_linear": (
                "mlp.shared_experts.gate_proj",
                "mlp.shared_experts.up_proj",
            ),
        },
    ),
    "Glm4MoeForCausalLM": GgufFamily(
        "glm4moe",
        head="own",
        more=lambda config: weighted(config, SIGMOID),
        biases=("attention_bias",),
        names=CORRECTION,
    ),
    "Dots1ForCausalLM": GgufFamily(
        "dots1",
        head="own",
        unlike=_as_many_heads,
        more=lambda config: weighted(config, SIGMOID),
        names=CORRECTION,
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
    "DeepseekV3ForCausalLM": GgufFamily(
        "deepseek2",
        more=lambda config: _mla(config) | weighted(config, SIGMOID),
        unlike=_deepseek_limits,
        names=CORRECTION,
    ),
    "MixtralForCausalLM": replace(
        LLAMA, more=experts, biases=(), names={".mlp.": ".block_sparse_moe."}
    ),
    "Qwen2MoeForCausalLM": replace(
        QWEN,
        name="qwen2moe",
        head="own",
        more=_qwen2_moe,
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
    "DeepseekV2ForCausalLM": GgufFamily("deepseek2", more=_deepseek_v2, unlike=_deepseek_v2_limits),
    "OlmoeForCausalLM": GgufFamily("olmoe", head="own", more=experts, unlike=_olmoe),
}
