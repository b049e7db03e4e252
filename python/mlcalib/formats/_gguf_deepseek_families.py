"""Mixtures of experts as DeepSeek has them, some of which read all tokens.

From V3 on a bias corrects the scores before experts are chosen.
"""

from typing import Any

from mlcalib.formats._gguf_config import rope
from mlcalib.formats._gguf_expert_families import CORRECTION, EXPERT_BIAS, SIGMOID, as_many_heads
from mlcalib.formats._gguf_family import GgufFamily, Values, experts, glm_sections
from mlcalib.formats._gguf_rows import rotated_first

_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def mla(config: Any) -> Values:
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
        mla(config)
        | experts(config)
        | {
            "leading_dense_block_count": config.first_k_dense_replace,
            "expert_shared_count": config.n_shared_experts,
            "expert_weights_scale": float(config.routed_scaling_factor),
            "expert_weights_norm": bool(config.norm_topk_prob),
        }
    )


def _youtu(config: Any) -> Values:
    return mla(config) | {
        "leading_dense_block_count": config.num_hidden_layers,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": 0,
    }


def _deepseek_ocr(config: Any) -> Values:
    shared = {
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": float(config.routed_scaling_factor),
    }
    return experts(config) | _leading_dense(config) | shared


def _deepseek_v2_limits(config: Any) -> str | None:
    return _greedy(config) or _deepseek_limits(config)


def _greedy(config: Any) -> str | None:
    return None if config.topk_method == "greedy" else f"topk_method={config.topk_method!r}"


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


def _kimi_linear(config: Any) -> Values:
    """Return what a mixture of delta attention and attention of low rank has.

    A length of 0 says that keys and values are stored whole.
    """
    heads = config.num_attention_heads
    full = [kind == "full_attention" for kind in config.layer_types]
    return (
        mla(config)
        | weighted(config, SIGMOID)
        | _leading_dense(config)
        | {
            "attention.head_count_kv": [heads if each else 0 for each in full],
            "attention.key_length_mla": 0,
            "attention.value_length_mla": 0,
            "kda.head_dim": config.linear_head_dim,
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
        }
    )


def _kimi_linear_limits(config: Any) -> str | None:
    if config.q_lora_rank is not None:
        return f"queries of rank {config.q_lora_rank}"
    if config.linear_num_heads != config.num_attention_heads:
        return "another number of heads in blocks of delta attention"
    if not config.norm_topk_prob:
        return "weights of experts that do not sum to 1"
    return _dense_first(config)


DEEPSEEK_FAMILIES = {
    "AfmoeForCausalLM": GgufFamily(
        "afmoe",
        slides=True,
        more=_afmoe,
        unlike=_afmoe_limits,
        names=EXPERT_BIAS,
    ),
    "Dots1ForCausalLM": GgufFamily(
        "dots1",
        head="own",
        unlike=as_many_heads,
        more=lambda config: weighted(config, SIGMOID),
        names=CORRECTION,
    ),
    "DeepseekV2ForCausalLM": GgufFamily("deepseek2", more=_deepseek_v2, unlike=_deepseek_v2_limits),
    "DeepseekOcr2ForConditionalGeneration": GgufFamily(
        "deepseek2-ocr",
        more=_deepseek_ocr,
        unlike=lambda config: _dense_first(config) or _greedy(config) or as_many_heads(config),
    ),
    "DeepseekV3ForCausalLM": GgufFamily(
        "deepseek2",
        more=lambda config: mla(config) | weighted(config, SIGMOID),
        unlike=_deepseek_limits,
        names=CORRECTION,
    ),
    "ExaoneMoeForCausalLM": GgufFamily(
        "exaone-moe",
        slides=True,
        more=_exaone_moe,
        unlike=_dense_first,
        names=CORRECTION,
    ),
    "Glm4MoeForCausalLM": GgufFamily(
        "glm4moe",
        head="own",
        more=lambda config: weighted(config, SIGMOID),
        biases=("attention_bias",),
        names=CORRECTION,
    ),
    "Glm4MoeLiteForCausalLM": GgufFamily(
        "deepseek2",
        more=lambda config: mla(config) | weighted(config, SIGMOID) | _leading_dense(config),
        unlike=lambda config: _dense_first(config) or _deepseek_limits(config),
        names=CORRECTION,
    ),
    "Glm4vMoeForConditionalGeneration": GgufFamily(
        "glm4moe",
        head="own",
        more=lambda config: weighted(config, SIGMOID) | glm_sections(config),
        biases=("attention_bias",),
        names=CORRECTION,
    ),
    "KimiLinearForCausalLM": GgufFamily(
        "kimi-linear",
        rows=rotated_first,
        head="own",
        more=_kimi_linear,
        unlike=_kimi_linear_limits,
        kinds=("linear_attention",),
        names={**CORRECTION, ".forget_gate.": ".", ".dt_bias": ".dt_proj.bias"},
        splits={
            "self_attn.conv1d": tuple(f"self_attn.{part}_conv1d" for part in "qkv"),
        },
    ),
    "SolarOpenForCausalLM": GgufFamily(
        "glm4moe",
        head="own",
        more=lambda config: weighted(config, SIGMOID),
        names=CORRECTION,
    ),
    "YoutuForCausalLM": GgufFamily("deepseek2", more=_youtu, unlike=_deepseek_limits),
}
