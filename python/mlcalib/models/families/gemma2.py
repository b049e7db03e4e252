"""Gemma-2; norms (1 + weight) before and after attention and MLP, every other block slides."""

from mlcalib.models.base import Adapter, ScaleGroup

adapter = Adapter(
    architectures=("Gemma2ForCausalLM",),
    blocks="model.layers",
    linears={
        "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention output": ("self_attn.o_proj",),
        "mlp": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp output": ("mlp.down_proj",),
    },
    scale_groups=(
        ScaleGroup("input_layernorm", ("attention",), offset=1.0),
        ScaleGroup("self_attn.v_proj", ("attention output",)),
        ScaleGroup("pre_feedforward_layernorm", ("mlp",), offset=1.0),
        ScaleGroup("mlp.up_proj", ("mlp output",)),
    ),
)
