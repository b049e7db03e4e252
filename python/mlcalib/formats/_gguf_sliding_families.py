"""Mixtures of experts whose heads differ between blocks that slide and those that see all."""

from typing import Any

from mlcalib.formats._gguf_expert_families import CORRECTION, SIGMOID
from mlcalib.formats._gguf_family import GgufFamily, Values, experts


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


SLIDING_FAMILIES = {
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
}
