"""Experts as linears of their own; transformers 5 fuses those of a block into two parameters."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.common import compat
from mlcalib.models.base import Adapter, Experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Expert(nn.Module):
    """One expert: down(act(gate(x)) · up(x)), its linears named as in the family's checkpoints."""

    def __init__(
        self,
        family: Experts,
        gate_up: Tensor,
        down: Tensor,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        """Take the weights as they are, without a copy.

        Args:
            family: names of the linears.
            gate_up: [2 · intermediate size, hidden size].
            down: [hidden size, intermediate size].
            activation: applied to the gate.
        """
        super().__init__()
        self._names = (family.gate, family.up, family.down)
        for name, weight in zip(self._names, (*gate_up.chunk(2), down), strict=True):
            self.add_module(name, _linear(weight))
        self._activation = activation

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return [tokens, hidden size] of the tokens routed here.

        Args:
            x: [tokens, hidden size].
            positions: int64 [tokens], where in the sequence they stand; for who watches.
        """
        gate, up, down = (self.get_submodule(name) for name in self._names)
        result: Tensor = down(self._activation(gate(x)) * up(x))
        return result


class ExpertList(nn.Module):
    """Experts as children "0", "1", …, with the arithmetic of transformers' eager experts."""

    def __init__(self, fused: nn.Module, family: Experts) -> None:
        """Take apart a block's fused experts; the weights are views of theirs.

        Raises:
            NotImplementedError: they are not fused as in transformers' Mixtral.
        """
        super().__init__()
        if (parts := compat.fused_experts(fused)) is None:
            raise NotImplementedError(
                f"{type(fused).__name__} does not hold gate_up_proj [experts, 2 · intermediate, "
                "hidden] and down_proj [experts, hidden, intermediate], as in transformers 5.24; "
                "this release fuses experts in another way."
            )
        gate_up, down, activation = parts
        for index in range(gate_up.shape[0]):
            expert = Expert(family, gate_up.detach()[index], down.detach()[index], activation)
            self.add_module(str(index), expert)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of what each token's experts give.

        Args:
            hidden: [tokens, hidden size].
            chosen: int64 [tokens, k], the experts of each token.
            weights: [tokens, k].
        """
        result = torch.zeros_like(hidden)
        for index, (_, expert) in enumerate(self.named_children()):
            rank, positions = torch.where(chosen.T.eq(index))
            if len(positions):
                given = expert(hidden[positions], positions) * weights[positions, rank, None]
                result.index_add_(0, positions, given.to(result.dtype))
        return result


def unfuse(model: "PreTrainedModel", adapter: Adapter) -> None:
    """Put an ``ExpertList`` in the place of fused experts; their parameters keep their values.

    Raises:
        NotImplementedError: experts that are fused in an unknown way.
    """
    for _, block in adapter.named_blocks(model):
        if (family := adapter.experts_of(block)) is not None:
            fused = block.get_submodule(family.path)
            if not isinstance(fused, ExpertList):
                block.set_submodule(family.path, ExpertList(fused, family))


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
