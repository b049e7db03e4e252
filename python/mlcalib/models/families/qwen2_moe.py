"""Qwen2-MoE; experts beside a shared one, in some or all blocks."""

from mlcalib.models.base import Adapter, Experts, ScaleGroup

adapter = Adapter(
    architectures=("Qwen2MoeForCausalLM",),
    blocks="model.layers",
    linears={  # of the blocks without experts
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
    experts=Experts(
        path="mlp.experts",
        gate="gate_proj",
        up="up_proj",
        down="down_proj",
        linears={
            "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention output": ("self_attn.o_proj",),
            "shared expert": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
            "shared expert output": ("mlp.shared_expert.down_proj",),
            "expert {}": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
            "expert {} output": ("mlp.experts.{}.down_proj",),
        },
        scale_groups=(
            ScaleGroup("input_layernorm", ("attention",)),
            ScaleGroup("self_attn.v_proj", ("attention output",)),
            ScaleGroup(
                "post_attention_layernorm",
                ("shared expert", "expert {}"),
                readers=("mlp.gate", "mlp.shared_expert_gate"),
            ),
            ScaleGroup("mlp.shared_expert.up_proj", ("shared expert output",)),
            ScaleGroup("mlp.experts.{}.up_proj", ("expert {} output",)),
        ),
    ),
)
