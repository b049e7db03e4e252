"""Llama (SmolLM2, TinyLlama, Yi, …) and the families with the same linears and norms.

Mistral's attention may slide; Qwen2 and Qwen2.5 have biases on q, k and v; Qwen3 has norms on the
heads of q and k, which scales of the input do not reach.
"""

from mlcalib.models.base import Adapter, GgufArchitecture, ScaleGroup

_QKV = {"attention_bias": "blk.0.attn_q.bias"}
_LLAMA = GgufArchitecture(
    "llama", whole=True, rotates_pairs=True, biases={**_QKV, "mlp_bias": "blk.0.ffn_down.bias"}
)

adapter = Adapter(
    architectures=(
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ),
    blocks="model.layers",
    linears={
        "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention output": ("self_attn.o_proj",),
        "mlp": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp output": ("mlp.down_proj",),
    },
    scale_groups=(
        ScaleGroup("input_layernorm", ("attention",)),
        ScaleGroup("self_attn.v_proj", ("attention output",)),
        ScaleGroup("post_attention_layernorm", ("mlp",)),
        ScaleGroup("mlp.up_proj", ("mlp output",)),
    ),
    gguf={
        "LlamaForCausalLM": _LLAMA,
        "MistralForCausalLM": _LLAMA,
        "Qwen2ForCausalLM": GgufArchitecture("qwen2", whole=True),  # whose biases are no option
        "Qwen3ForCausalLM": GgufArchitecture("qwen3", whole=True, biases=_QKV),
    },
)
