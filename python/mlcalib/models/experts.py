"""Experts taken apart; transformers 5 fuses those of a block into two parameters."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mlcalib.common import compat
from mlcalib.models.base import Adapter
from mlcalib.models.expert_list import Expert, ExpertList, apart, linear_of
from mlcalib.models.fusion import Fusion
from mlcalib.models.own_rules import by_own_rule

__all__ = ["Expert", "ExpertList", "experts_of_token", "unfuse", "unfuse_all"]

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def unfuse(model: "PreTrainedModel", adapter: Adapter) -> None:
    """Put an ``ExpertList`` in the place of fused experts; their parameters keep their values.

    Raises:
        NotImplementedError: experts that are fused in an unknown way.
    """
    for _, block in adapter.named_blocks(model):
        if (family := adapter.experts_of(block)) is not None:
            fused = block.get_submodule(family.path)
            if not isinstance(fused, ExpertList):
                names = (family.gate, family.up, family.down)
                block.set_submodule(family.path, _of_family(fused, names))
    unfuse_all(model)


def experts_of_token(config: "PretrainedConfig", count: int) -> int:
    """Return to how many of a block's experts a token goes; all where the config does not say.

    Args:
        config: of the model.
        count: how many experts a block has.
    """
    text = config.get_text_config()
    names = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "top_k")
    found = [getattr(text, name, None) for name in (*names, "moe_top_k", "moe_num_active_experts")]
    return min(next((each for each in found if isinstance(each, int) and each > 0), count), count)


def unfuse_all(model: nn.Module) -> None:
    """Put an ``ExpertList`` in the place of all experts that transformers' interface describes.

    For what it does not describe there are own rules, which put linears in the place of other
    weights, too.
    """
    for path, module in list(model.named_modules()):
        if (described := compat.experts_interface(module)) is not None:
            model.set_submodule(path, _of_interface(module, described))
        elif (own := by_own_rule(module)) is not None:
            model.set_submodule(path, own)


def _of_family(fused: nn.Module, names: tuple[str, str, str]) -> ExpertList:
    """Take apart the experts of a family whose file names their linears."""
    if (parts := compat.fused_experts(fused)) is None:
        raise NotImplementedError(
            f"{type(fused).__name__} does not hold gate_up_proj [experts, 2 · intermediate, "
            "hidden] and down_proj [experts, hidden, intermediate], as in transformers 5.24; "
            "this release fuses experts in another way."
        )
    gate_up, down, activation = parts

    def combine(first: list[Tensor]) -> Tensor:
        return activation(first[0]) * first[1]

    return ExpertList(
        Expert(
            dict(zip(names[:2], map(linear_of, both.chunk(2)), strict=True)),
            (names[2], linear_of(last)),
            combine,
        )
        for both, last in zip(gate_up.detach(), down.detach(), strict=True)
    )


def _of_interface(fused: nn.Module, described: compat.ExpertsInterface) -> ExpertList:
    """Take apart experts by what transformers' interface says of them."""
    fusion = Fusion(described.transposed, described.concatenated, described.gate, described.bias)
    tensors = {name: fused.get_parameter(name) for name in fusion.fused}
    return apart(tensors, fusion, described.activate, described.norm)
