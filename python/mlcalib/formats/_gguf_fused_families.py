"""Families of before Llama: GPT-2 and those after it, most with q, k and v in one linear."""

from dataclasses import replace
from typing import Any

from mlcalib.formats._gguf_family import GELU, TANH_GELU, GgufFamily, Values, clamped
from mlcalib.formats._gguf_rows import by_group, by_head, falcon_heads

_GPT = GgufFamily("gpt2", ropes=("default",), activations=TANH_GELU)


def _sizes(config: Any, hidden: int | None = None, heads: int | None = None) -> Values:
    """Return hidden units of the MLP and heads of keys and values, which configs leave out."""
    return {
        "feed_forward_length": hidden or 4 * config.hidden_size,
        "attention.head_count_kv": heads or config.num_attention_heads,
    }


def _neox(config: Any) -> Values:
    parallel = {"use_parallel_residual": bool(config.use_parallel_residual)}
    return _sizes(config, config.intermediate_size) | parallel


def _bloom(config: Any) -> Values:
    return _sizes(config) | {"context_length": 2048}  # as many as ALiBi is trained for; no limit


def _bloom_limits(config: Any) -> str | None:
    if config.apply_residual_connection_post_layernorm:
        return "apply_residual_connection_post_layernorm=True"
    return None


def _falcon(config: Any) -> Values:
    sizes = _sizes(config, config.ffn_hidden_size, falcon_heads(config))
    return sizes | {"tensor_data_layout": "jploski"}


def _falcon_limits(config: Any) -> str | None:
    if config.alibi:
        return "alibi"
    if not (config.parallel_attn or config.new_decoder_architecture):
        return "attention and MLP one after the other"
    return "biases" if config.bias else None


def _bigcode(config: Any) -> Values:
    return _sizes(config, config.n_inner, 1 if config.multi_query else None)


def _mpt(config: Any) -> Values:
    found = _sizes(config, config.expansion_ratio * config.hidden_size) | {
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "attention.max_alibi_bias": float(config.attn_config.alibi_bias_max),
    }
    return found | clamped(config.attn_config.clip_qkv)


def _mpt_limits(config: Any) -> str | None:
    given = config.attn_config
    if not given.alibi:
        return "alibi=False"
    if given.qk_ln or given.softmax_scale is not None:
        return "norms of q and k" if given.qk_ln else f"softmax_scale={given.softmax_scale}"
    return None


def _gpt2_limits(config: Any) -> str | None:
    if not config.scale_attn_weights or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "attention of another scale"
    return None


FUSED_FAMILIES = {
    "GPTNeoXForCausalLM": replace(
        _GPT,
        name="gptneox",
        rows=by_head,
        head="own",
        more=_neox,
        ropes=("default", "linear"),
        activations=GELU,
        biases=("attention_bias",),
    ),
    "BloomForCausalLM": replace(
        _GPT,
        name="bloom",
        rows=by_head,
        more=_bloom,
        unlike=_bloom_limits,
        names={"transformer.": ""},
    ),
    "FalconForCausalLM": replace(
        _GPT,
        name="falcon",
        rows=by_group,
        more=_falcon,
        unlike=_falcon_limits,
        ropes=("default", "linear"),
        activations=GELU,
    ),
    "GPTBigCodeForCausalLM": replace(
        _GPT,
        name="starcoder",
        rows=lambda name, values, config: (
            values if config.multi_query else by_head(name, values, config)
        ),
        more=_bigcode,
        unlike=_gpt2_limits,
    ),
    "GPT2LMHeadModel": replace(
        _GPT, more=lambda config: _sizes(config, config.n_inner), unlike=_gpt2_limits
    ),
    "MptForCausalLM": replace(_GPT, name="mpt", more=_mpt, unlike=_mpt_limits),
}
