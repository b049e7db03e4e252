"""What llama.cpp computes for each class of transformers whose whole models are written to GGUF.

A class is in the table if llama.cpp's logits of a random model were those of transformers
(``scripts/interop/gguf_families.py``); of each the limits of its graph in llama.cpp
(``src/models``) are stated, and models beyond them are refused before anything runs.
"""

from dataclasses import replace
from typing import Any

from mlcalib.formats._gguf_config import head_dim, rope
from mlcalib.formats._gguf_deepseek_families import DEEPSEEK_FAMILIES, mla
from mlcalib.formats._gguf_expert_families import EXPERT_FAMILIES
from mlcalib.formats._gguf_family import (
    FREQUENCIES,
    LLAMA,
    QWEN,
    TANH_GELU,
    GgufFamily,
    Values,
    clamped,
    deepstack,
    glm_sections,
    granite,
    no_positions_every_fourth,
)
from mlcalib.formats._gguf_fused_families import FUSED_FAMILIES
from mlcalib.formats._gguf_gemma_families import GEMMA_FAMILIES
from mlcalib.formats._gguf_inside import inside_classes
from mlcalib.formats._gguf_recurrent_families import RECURRENT_FAMILIES
from mlcalib.formats._gguf_rows import as_it_is, halved, interleaved
from mlcalib.formats._gguf_sliding_families import SLIDING_FAMILIES
from mlcalib.models import gguf_architectures


def family_of(architecture: str) -> GgufFamily | None:
    """Return what is known of a class; what ``GgufArchitecture.whole`` says of a plug-in's."""
    if (found := _FAMILIES.get(architecture)) is not None:
        return found
    known = gguf_architectures().get(architecture)
    if known is None or not known.whole:
        return None
    return replace(
        LLAMA,
        name=known.name,
        rows=interleaved if known.rotates_pairs else as_it_is,
        activations=None,
    )


def families() -> dict[str, GgufFamily]:
    """Return class of transformers → how llama.cpp holds it, of those that are written."""
    return _FAMILIES


def written_classes() -> list[str]:
    """Return the names of the classes that are written, or whose language model is."""
    whole = [name for name, each in gguf_architectures().items() if each.whole]
    return list(dict.fromkeys([*whole, *_FAMILIES, *inside_classes()]))


def _gemma(config: Any) -> Values:
    found: Values = {}
    for cap, key in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        if (value := getattr(config, cap, None)) is not None:
            found[key] = float(value)
    return found


def _gemma_scale(config: Any, largest: int) -> str | None:
    """Refuse other scales of attention than llama.cpp tells from the number of blocks."""
    expected = head_dim(config)
    if config.num_hidden_layers == largest:
        expected = config.hidden_size // config.num_attention_heads
    if config.query_pre_attn_scalar != expected:
        return f"query_pre_attn_scalar={config.query_pre_attn_scalar} (it takes {expected})"
    if getattr(config, "use_bidirectional_attention", None):
        return "attention to later tokens"
    return None


def _gemma2(config: Any) -> str | None:
    if config.attn_logit_softcapping is None or config.final_logit_softcapping is None:
        return "logits that are not capped"
    return _gemma_scale(config, 46)


def _gemma3(config: Any) -> str | None:
    if config.attn_logit_softcapping is not None:
        return "capped logits of attention"
    return _gemma_scale(config, 62)


def _logit_scale(config: Any) -> Values:
    return {"logit_scale": float(config.logit_scale)}


def _cohere(config: Any) -> str | None:
    return "norms of q and k" if getattr(config, "use_qk_norm", False) else None


def _stablelm(config: Any) -> Values:
    return {"use_parallel_residual": bool(config.use_parallel_residual)}


def _normed(config: Any) -> str | None:
    return "norms of q and k" if config.qk_layernorm else None


def _ministral3(config: Any) -> Values:
    beta = rope(config).get("llama_4_scaling_beta")
    return {} if beta is None else {"attention.temperature_scale": float(beta)}


def _hunyuan_vl(config: Any) -> Values:
    alpha = rope(config).get("alpha")
    return {"rope.scaling.alpha": float(alpha)} if alpha else {}


def _hunyuan_vl_limits(config: Any) -> str | None:
    given = rope(config)
    if given["rope_type"] == "dynamic" and not given.get("alpha"):
        return "rope_type 'dynamic' without alpha"
    if not given.get("mrope_section"):
        return "positions without sections"
    return None


def _slides(config: Any) -> str | None:
    return "sliding windows" if config.sliding_window is not None else None


def _minicpm3_limits(config: Any) -> str | None:
    scales = (config.scale_emb, config.scale_depth, config.dim_model_base)
    return None if scales == (12, 1.4, 256) else f"scales of {scales}"


def _olmo(config: Any) -> Values:
    return {"attention.layer_norm_epsilon": 1e-5} | clamped(config.clip_qkv)


_XIELU = {f".act_fn.{name}": f"xielu.{name}" for name in ("alpha_n", "alpha_p", "beta", "eps")}
_GEMMA = GgufFamily(
    "gemma", norm_offset=1.0, head="tied", activations=TANH_GELU, more=_gemma, ropes=("default",)
)
_COHERE = GgufFamily(
    "command-r", head="tied", more=_logit_scale, unlike=_cohere, ropes=("default",)
)
_GLM_4V = GgufFamily("glm4", rows=halved, more=glm_sections)

_FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Ministral3ForCausalLM": replace(LLAMA, name="mistral3", more=_ministral3, biases=()),
    "GraniteForCausalLM": replace(LLAMA, name="granite", more=granite),
    "SmolLM3ForCausalLM": replace(
        LLAMA,
        name="smollm3",
        unlike=no_positions_every_fourth,
        ropes=("default", "linear", "yarn"),
        biases=(),
    ),
    "Qwen2ForCausalLM": QWEN,
    "Qwen3ForCausalLM": replace(QWEN, name="qwen3"),
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": replace(_GEMMA, name="gemma2", slides=True, unlike=_gemma2),
    "Gemma3ForCausalLM": replace(
        _GEMMA, name="gemma3", slides=True, unlike=_gemma3, ropes=("default", "linear"), head="any"
    ),
    "Phi3ForCausalLM": GgufFamily("phi3", ropes=("default", "longrope")),
    "CohereForCausalLM": _COHERE,
    "Cohere2ForCausalLM": replace(_COHERE, name="cohere2", slides=True),
    "Olmo2ForCausalLM": GgufFamily("olmo2", head="own"),
    "Olmo3ForCausalLM": GgufFamily("olmo2", head="own", slides=True),
    "StableLmForCausalLM": GgufFamily(
        "stablelm", head="own", more=_stablelm, unlike=_normed, biases=("use_qkv_bias",)
    ),
    "Starcoder2ForCausalLM": GgufFamily("starcoder2", activations=TANH_GELU, biases=("use_bias",)),
    "Glm4ForCausalLM": GgufFamily("glm4", biases=("attention_bias",)),
    "Glm4vForConditionalGeneration": _GLM_4V,
    "GlmOcrForConditionalGeneration": _GLM_4V,
    "Exaone4ForCausalLM": GgufFamily("exaone4", ropes=FREQUENCIES, unlike=_slides),
    "SeedOssForCausalLM": GgufFamily("seed_oss", biases=("attention_bias",)),
    "Ernie4_5ForCausalLM": GgufFamily("ernie4_5"),
    "ArceeForCausalLM": replace(LLAMA, name="arcee", activations=("relu2",)),
    "NemotronForCausalLM": GgufFamily(
        "nemotron", head="own", norm_offset=1.0, activations=("relu2",)
    ),
    "GlmForCausalLM": GgufFamily("chatglm", biases=("attention_bias",)),
    "HunYuanDenseV1ForCausalLM": GgufFamily("hunyuan-dense"),
    "HunYuanVLForConditionalGeneration": GgufFamily(
        "hunyuan_vl", ropes=("default", "dynamic"), more=_hunyuan_vl, unlike=_hunyuan_vl_limits
    ),
    "OlmoForCausalLM": replace(LLAMA, name="olmo", more=_olmo, biases=()),
    "ApertusForCausalLM": GgufFamily(
        "apertus", ropes=FREQUENCIES, activations=("xielu",), numbers=_XIELU
    ),
    "MiniCPM3ForCausalLM": GgufFamily(
        "minicpm3", more=mla, unlike=_minicpm3_limits, ropes=("default", "longrope")
    ),
    "Qwen2VLForConditionalGeneration": replace(QWEN, name="qwen2vl"),
    "Qwen2_5_VLForConditionalGeneration": replace(QWEN, name="qwen2vl"),
    "Qwen3VLForConditionalGeneration": replace(QWEN, name="qwen3vl", beside=deepstack),
    "Jais2ForCausalLM": GgufFamily(
        "jais2", activations=("relu2",), biases=("attention_bias", "mlp_bias")
    ),
    "PaddleOCRVLForConditionalGeneration": GgufFamily("paddleocr"),
    "PhiForCausalLM": GgufFamily("phi2", head="own", activations=TANH_GELU, unlike=_normed),
    **GEMMA_FAMILIES,
    **EXPERT_FAMILIES,
    **DEEPSEEK_FAMILIES,
    **SLIDING_FAMILIES,
    **FUSED_FAMILIES,
    **RECURRENT_FAMILIES,
}
