"""Families with recurrent blocks or short convolutions, alone or between attention."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from mlcalib.formats._gguf_config import rope
from mlcalib.formats._gguf_deepseek_families import weighted
from mlcalib.formats._gguf_expert_families import (
    BLOCK_SPARSE,
    CORRECTION,
    EXPERT_BIAS,
    SHARED_MLP,
    SIGMOID,
    every_block_has_experts,
    with_shared_expert,
)
from mlcalib.formats._gguf_family import LLAMA, GgufFamily, Values, experts, granite
from mlcalib.formats._gguf_rows import gated_delta, interleaved, mamba, mamba2

_RECURRENT = ("linear_attention", "mamba")
_DT = {".dt_bias": ".dt_proj.bias"}
_LONG = 2**20
"""What llama.cpp's converter takes for models without positions."""


def _mamba(config: Any) -> Values:
    return {
        "context_length": _LONG,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
        "attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.inner_size": config.expand * config.hidden_size,
        "ssm.state_size": config.state_size,
        "ssm.time_step_rank": config.time_step_rank,
        "ssm.dt_b_c_rms": config.model_type == "falcon_mamba",
    }


def _mamba_limits(config: Any) -> str | None:
    if config.expand != 2:
        return f"expand={config.expand}"
    return None if config.use_conv_bias else "convolutions without biases"


def _mamba2(config: Any) -> Values:
    inner = config.expand * config.hidden_size
    return _mamba(config) | {
        "ssm.time_step_rank": inner // config.head_dim,
        "ssm.group_count": config.n_groups,
    }


def _hybrid(config: Any) -> Values:
    """Return what a mixture of Mamba and attention has; blocks without keys are recurrent."""
    heads = config.num_key_value_heads
    keys = [0 if kind in _RECURRENT else heads for kind in config.layers_block_type]
    return {
        "attention.head_count_kv": keys,
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.inner_size": config.mamba_expand * config.hidden_size,
        "ssm.state_size": config.mamba_d_state,
    }


def _hybrid2(config: Any) -> Values:
    more = {"ssm.group_count": config.mamba_n_groups, "ssm.time_step_rank": config.mamba_n_heads}
    return _hybrid(config) | more


def _bamba(config: Any) -> Values:
    return _hybrid2(config) | {"rope.scaling.finetuned": True}


def _granite_hybrid(config: Any) -> Values:
    found = granite(config) | _hybrid2(config)
    rotates = config.position_embedding_type == "rope"
    found["rope.scaling.finetuned"] = rotates
    if config.num_local_experts:
        found |= experts(config)
        found["expert_shared_feed_forward_length"] = config.shared_intermediate_size
    else:
        found["feed_forward_length"] = config.shared_intermediate_size
    return found


def _jamba(config: Any) -> Values:
    return _hybrid(config) | experts(config) | {"ssm.time_step_rank": config.mamba_dt_rank}


def _nemotron_h(config: Any) -> Values:
    kinds = config.layers_block_type
    heads, experts_too = config.num_key_value_heads, "moe" in kinds
    hidden = config.moe_intermediate_size if experts_too else config.intermediate_size
    found: Values = {
        "context_length": _LONG,
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": [hidden if kind in ("mlp", "moe") else 0 for kind in kinds],
        "attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
        "ssm.state_size": config.ssm_state_size,
        "ssm.time_step_rank": config.mamba_num_heads,
        "ssm.group_count": config.n_groups,
    }
    if experts_too:
        found |= weighted(config, SIGMOID)
        found["expert_shared_feed_forward_length"] = config.moe_shared_expert_intermediate_size
    return found


def _nemotron_h_limits(config: Any) -> str | None:
    if {"mlp", "moe"} <= set(config.layers_block_type):
        return "blocks without experts among those that have some"
    return "experts of a narrower width" if config.moe_latent_size else None


def _both(name: str, values: Tensor, config: Any) -> Tensor:
    return mamba2(name, interleaved(name, values, config), config)


def _lfm2(config: Any) -> Values:
    keys = [0 if kind == "conv" else config.num_key_value_heads for kind in config.layer_types]
    return {
        "attention.head_count_kv": keys,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "shortconv.l_cache": config.conv_L_cache,
    }


def _lfm2_dense(config: Any) -> Values:
    hidden = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        hidden = int((config.block_ffn_dim_multiplier or 1) * int(2 * hidden / 3))
        hidden = -(-hidden // config.block_multiple_of) * config.block_multiple_of
    return _lfm2(config) | {"feed_forward_length": hidden}


def _lfm2_moe(config: Any) -> Values:
    gate = {"expert_gating_func": SIGMOID, "leading_dense_block_count": config.num_dense_layers}
    return _lfm2(config) | experts(config) | gate


def _lfm2_moe_limits(config: Any) -> str | None:
    if not config.norm_topk_prob or config.routed_scaling_factor != 1.0:
        return "weights of experts that are not those of the published models"
    return _lfm2_limits(config)


def _lfm2_limits(config: Any) -> str | None:
    if len(set(config.layer_types)) < 2:
        return "blocks that are all alike"
    return "biases of convolutions" if config.conv_bias else None


def _qwen3_next(config: Any) -> Values:
    return with_shared_expert(config) | _delta(config)


def _delta(config: Any) -> Values:
    return {
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
        "attention.recurrent_layers": [kind == "linear_attention" for kind in config.layer_types],
    }


def _qwen3_next_limits(config: Any) -> str | None:
    return _several_sizes(config) or every_block_has_experts(config, True)


def _several_sizes(config: Any) -> str | None:
    if config.linear_key_head_dim != config.linear_value_head_dim:
        return "keys and values of several sizes"
    return None


def _sections(config: Any) -> Values:
    """Return those of the published models where a config leaves them out."""
    given = rope(config).get("mrope_section")
    return {} if given else {"rope.dimension_sections": [11, 11, 10, 0]}


def _qwen3_5_limits(config: Any) -> str | None:
    if config.linear_num_key_heads != config.linear_num_value_heads:
        return "more heads of values than of keys, which it wants in an order of input channels"
    return _several_sizes(config)


def _qkv_and_z(config: Any) -> list[int]:
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    return [2 * keys + values, values]


_QWEN_3_5 = GgufFamily(
    "qwen35",
    norm_offset=1.0,
    rows=mamba,
    more=lambda config: _sections(config) | _delta(config),
    unlike=_qwen3_5_limits,
    kinds=_RECURRENT,
    names=_DT,
)
_QWEN_3_5_MOE = replace(
    _QWEN_3_5, name="qwen35moe", more=lambda config: _sections(config) | _qwen3_next(config)
)
_MAMBA = GgufFamily("mamba", rows=mamba, more=_mamba, unlike=_mamba_limits, ropes=("default",))
_LFM2 = GgufFamily(
    "lfm2",
    rows=mamba,
    more=_lfm2_dense,
    unlike=_lfm2_limits,
    kinds=("conv",),
)
_HYBRID = replace(LLAMA, name="granitehybrid", rows=_both, more=_bamba, kinds=_RECURRENT, names=_DT)

RECURRENT_FAMILIES = {
    "MambaForCausalLM": _MAMBA,
    "FalconMambaForCausalLM": _MAMBA,
    "Mamba2ForCausalLM": replace(_MAMBA, name="mamba2", rows=mamba2, more=_mamba2, names=_DT),
    "BambaForCausalLM": _HYBRID,
    "GraniteMoeHybridForCausalLM": replace(
        _HYBRID,
        more=_granite_hybrid,
        names=_DT | BLOCK_SPARSE,
        renamed=lambda saved, config: (
            saved if config.num_local_experts else saved.replace("_shexp", "")
        ),
        splits=SHARED_MLP,
    ),
    "JambaForCausalLM": GgufFamily(
        "jamba",
        rows=mamba,
        more=_jamba,
        kinds=_RECURRENT,
        names={".feed_forward.experts.": ".mlp.experts."},
    ),
    "Qwen3NextForCausalLM": GgufFamily(
        "qwen3next",
        head="own",
        norm_offset=1.0,
        rows=gated_delta,
        more=_qwen3_next,
        unlike=_qwen3_next_limits,
        kinds=_RECURRENT,
        names=_DT,
        splits={
            "linear_attn.in_proj_qkvz": ("self_attn.qkv_proj", "linear_attn.in_proj_z"),
        },
        shares=_qkv_and_z,
    ),
    "NemotronHForCausalLM": GgufFamily(
        "nemotron_h_moe",
        rows=mamba2,
        more=_nemotron_h,
        unlike=_nemotron_h_limits,
        activations=("relu2",),
        kinds=(*_RECURRENT, "mlp", "moe"),
        names=_DT
        | CORRECTION
        | {
            ".mixer.experts.": ".mlp.experts.",
            r"^model\.(?!.*\.experts\.)": "backbone.",
        },
    ),
    "Qwen3_5ForCausalLM": _QWEN_3_5,
    "Qwen3_5MoeForCausalLM": _QWEN_3_5_MOE,
    "Lfm2ForCausalLM": _LFM2,
    "Lfm2MoeForCausalLM": replace(
        _LFM2,
        name="lfm2moe",
        more=_lfm2_moe,
        unlike=_lfm2_moe_limits,
        names=EXPERT_BIAS,
    ),
}
