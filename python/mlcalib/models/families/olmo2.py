"""OLMo-2; norms after attention and MLP, and on q and k."""

from mlcalib.models.base import Adapter, ScaleGroup

adapter = Adapter(
    architectures=("Olmo2ForCausalLM",),
    blocks="model.layers",
    linears={
        "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention output": ("self_attn.o_proj",),
        "mlp": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp output": ("mlp.down_proj",),
    },
    scale_groups=(  # attention and MLP read the residual stream itself: no norm could be scaled
        ScaleGroup("self_attn.v_proj", ("attention output",)),
        ScaleGroup("mlp.up_proj", ("mlp output",)),
    ),
)
