"""Cohere and Cohere2 (Command R, Aya); attention and MLP run side by side on one norm."""

from mlcalib.models.base import Adapter, ScaleGroup

adapter = Adapter(
    architectures=("CohereForCausalLM", "Cohere2ForCausalLM"),
    blocks="model.layers",
    linears={
        "attention and mlp": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
        ),
        "attention output": ("self_attn.o_proj",),
        "mlp output": ("mlp.down_proj",),
    },
    scale_groups=(
        ScaleGroup("input_layernorm", ("attention and mlp",)),
        ScaleGroup("self_attn.v_proj", ("attention output",)),
        ScaleGroup("mlp.up_proj", ("mlp output",)),
    ),
)
