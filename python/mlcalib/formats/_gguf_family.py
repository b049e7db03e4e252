"""How llama.cpp holds and runs the models of a class of transformers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mlcalib.formats._gguf_rows import as_it_is

Values = dict[str, Any]
SILU = ("silu", "swish")
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
GELU = (*TANH_GELU, "gelu")
"""llama.cpp approximates all of them by tanh; see ``warn``."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts of a block."""
FREQUENCIES = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class GgufFamily:
    """How llama.cpp holds and runs the models of a class.

    Attributes:
        name: of the architecture.
        rows: name in the model, values and config → values whose rows lie as llama.cpp reads them.
        norm_offset: what is added to the weights of norms, which transformers keep without it.
        slides: blocks slide as the file says; elsewhere the context is at most the window.
        head: ``own``: a file always has a head, tied or not; ``tied``: never; ``any``.
        ropes: kinds of positions that its graph knows.
        activations: of the MLP, any of these; None where a plug-in answers for it.
        biases: options of the config that may be true, and add biases.
        more: config → hyperparameters that others do not have.
        unlike: config → what of it llama.cpp does not compute, or None.
        names: part of a tensor's name in transformers → what the package gguf knows it by.
    """

    name: str
    rows: Callable[[str, Tensor, Any], Tensor] = as_it_is
    norm_offset: float = 0.0
    slides: bool = False
    head: Literal["own", "tied", "any"] = "any"
    ropes: Collection[str] = ("default", "linear", "yarn")
    activations: Collection[str] | None = SILU
    biases: Collection[str] = ()
    more: Callable[[Any], Values] = lambda _: {}
    unlike: Callable[[Any], str | None] = lambda _: None
    names: Mapping[str, str] = field(default_factory=dict)


def experts(config: Any) -> Values:
    """Return hyperparameters of a mixture of experts."""
    many = next(
        found for name in EXPERT_COUNTS if (found := getattr(config, name, None)) is not None
    )
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return {
        "expert_count": many,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": width,
    }
