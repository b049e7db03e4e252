"""Llama and the models that share its class (SmolLM2, TinyLlama, Yi, …)."""

from mlcalib.models.base import Adapter

adapter = Adapter(
    architectures=("LlamaForCausalLM",),
    blocks="model.layers",
    linears={
        "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention output": ("self_attn.o_proj",),
        "mlp": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp output": ("mlp.down_proj",),
    },
)
