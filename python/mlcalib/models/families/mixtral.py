"""Mixtral; every block has experts."""

from mlcalib.models.base import Adapter, Experts, ScaleGroup

adapter = Adapter(
    architectures=("MixtralForCausalLM",),
    blocks="model.layers",
    linears={},
    scale_groups=(),
    experts=Experts(
        path="mlp.experts",
        gate="w1",
        up="w3",
        down="w2",
        linears={
            "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention output": ("self_attn.o_proj",),
            "expert {}": ("mlp.experts.{}.w1", "mlp.experts.{}.w3"),
            "expert {} output": ("mlp.experts.{}.w2",),
        },
        scale_groups=(
            ScaleGroup("input_layernorm", ("attention",)),
            ScaleGroup("self_attn.v_proj", ("attention output",)),
            ScaleGroup("post_attention_layernorm", ("expert {}",), readers=("mlp.gate",)),
            ScaleGroup("mlp.experts.{}.w3", ("expert {} output",)),
        ),
    ),
    saved_names={".mlp.": ".block_sparse_moe."},
)
