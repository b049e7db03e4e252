"""How llama.cpp holds and runs the models of a class of transformers."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mlcalib.formats._gguf_config import rope
from mlcalib.formats._gguf_rows import as_it_is, interleaved

Values = dict[str, Any]
SILU = ("silu", "swish")
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
GELU = (*TANH_GELU, "gelu")
"""llama.cpp approximates all of them by tanh; see ``warn``."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts of a block."""
_USED = ("num_experts_per_tok", "moe_k", "moe_topk")
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
        beside: config of a model that sees or hears → more hyperparameters.
        unlike: config → what of it llama.cpp does not compute, or None.
        names: pattern in a tensor's name in transformers → what the package gguf knows it by.
        renamed: name of a tensor in a file, and config → its name where it depends on the config.
        splits: part of the name of a tensor whose rows are those of several in llama.cpp → the
            parts' names.
        shares: config → rows of each part; as many of each where it says nothing.
        numbers: end of the name of a tensor of one number for each block → the key of a file that
            lists them.
        unread: config → names of tensors that a file must have and no block reads → their shapes.
        kinds: of blocks that its graph knows besides those of full attention.
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
    beside: Callable[[Any], Values] = lambda _: {}
    unlike: Callable[[Any], str | None] = lambda _: None
    names: Mapping[str, str] = field(default_factory=dict)
    renamed: Callable[[str, Any], str] = lambda saved, _: saved
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shares: Callable[[Any], list[int]] | None = None
    numbers: Mapping[str, str] = field(default_factory=dict)
    unread: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda _: {}
    kinds: Collection[str] = ()


def experts(config: Any) -> Values:
    """Return hyperparameters of a mixture of experts."""
    many = _given(config, EXPERT_COUNTS)
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return {
        "expert_count": _number(many),
        "expert_used_count": _number(_given(config, _USED)),
        "expert_feed_forward_length": _number(width),
    }


def deepstack(config: Any) -> Values:
    """Return how many blocks of Qwen3-VL add what is seen."""
    return {"n_deepstack_layers": len(config.vision_config.deepstack_visual_indexes)}


def glm_sections(config: Any) -> Values:
    """Return those of GLM's models that see, where a config leaves them out."""
    given = rope(config).get("mrope_section")
    return {} if given else {"rope.dimension_sections": [8, 12, 12, 0]}


def clamped(limit: float | None) -> Values:
    """Return what q, k and v are clipped to, of a config that may leave them as they are."""
    return {} if limit is None else {"attention.clamp_kqv": float(limit)}


def no_positions_every_fourth(config: Any) -> str | None:
    """Refuse positions that are left out of other blocks than every fourth."""
    every_fourth = [int((block + 1) % 4 != 0) for block in range(config.num_hidden_layers)]
    if list(config.no_rope_layers) != every_fourth:
        return "positions that are left out of other blocks than every fourth"
    return None


def granite(config: Any) -> Values:
    """Return the multipliers of Granite."""
    return {
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def _given(config: Any, names: Iterable[str]) -> Any:
    return next(found for name in names if (found := getattr(config, name, None)) is not None)


def _number(given: int | list[int]) -> int:
    """Return the number of every block, of configs that may give one for each."""
    return int(given[0]) if isinstance(given, list) else int(given)


LLAMA = GgufFamily(
    "llama", rows=interleaved, ropes=FREQUENCIES, biases=("attention_bias", "mlp_bias")
)
QWEN = GgufFamily("qwen2")
