"""Llama and the models that share its class (SmolLM2, TinyLlama, Yi, …)."""

from mlcalib.models.base import Adapter, ScaleGroup

adapter = Adapter(
    architectures=("LlamaForCausalLM",),
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
)
