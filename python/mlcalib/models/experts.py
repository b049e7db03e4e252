"""Experts as linears of their own; transformers 5 fuses those of a block into two parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.common import compat
from mlcalib.models.base import Adapter
from mlcalib.models.fusion import Fusion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Combine = Callable[[list[Tensor]], Tensor]
"""What an expert does with the outputs of its first linears: of the gate and of the other."""


class Expert(nn.Module):
    """One expert: down(combine(gate(x), up(x))); some have no gate."""

    def __init__(
        self, first: Mapping[str, nn.Linear], down: tuple[str, nn.Linear], combine: Combine
    ) -> None:
        """Take linears as they are.

        Args:
            first: name → linear that reads the input: the gate, if there is one, and up.
            down: name and linear of the last.
            combine: what is done with the outputs of ``first``.
        """
        super().__init__()
        self._first, self._down = tuple(first), down[0]
        for name, linear in (*first.items(), down):
            self.add_module(name, linear)
        self._combine = combine

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The names of its linears; those in one tuple read one tensor."""
        return self._first, (self._down,)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return [tokens, hidden size] of the tokens routed here.

        Args:
            x: [tokens, hidden size].
            positions: int64 [tokens], where in the sequence they stand; for who watches.
        """
        first = [self.get_submodule(name)(x) for name in self._first]
        result: Tensor = self.get_submodule(self._down)(self._combine(first))
        return result


class ExpertList(nn.Module):
    """Experts as children "0", "1", …, with the arithmetic of transformers' eager experts."""

    def __init__(
        self,
        experts: Iterable[Expert],
        fusion: Fusion | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        """Take experts.

        Args:
            experts: in order.
            fusion: how transformers fuses them; None where checkpoints hold each expert's own.
            norm: applied to what each of them gives.
        """
        super().__init__()
        for index, expert in enumerate(experts):
            self.add_module(str(index), expert)
        self.count = len(list(self.experts()))
        self.fusion = fusion
        self.post_expert_norm = norm

    def experts(self) -> Iterator[tuple[str, Expert]]:
        """Yield (name, expert)."""
        for name, module in self.named_children():
            if isinstance(module, Expert):
                yield name, module

    def inputs(self, expert: int) -> list[tuple[str, ...]]:
        """Return the names of an expert's linears; those in one tuple read one tensor."""
        _, like = next(self.experts())
        return [tuple(f"{expert}.{name}" for name in names) for names in like.names]

    def forget(self, first: int) -> None:
        """Let go of experts from one on: tokens that are routed to them get nothing."""
        for index in range(first, self.count):
            delattr(self, str(index))

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of what each token's experts give.

        Args:
            hidden: [tokens, hidden size].
            chosen: int64 [tokens, k], the experts of each token.
            weights: [tokens, k].
        """
        result = torch.zeros_like(hidden)
        for name, expert in self.experts():
            rank, positions = torch.where(chosen.T.eq(int(name)))
            if len(positions):
                given = expert(hidden[positions], positions)
                if self.post_expert_norm is not None:
                    given = self.post_expert_norm(given)
                given = given * weights[positions, rank, None]
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
                names = (family.gate, family.up, family.down)
                block.set_submodule(family.path, _of_family(fused, names))
    unfuse_all(model)


def unfuse_all(model: nn.Module) -> None:
    """Put an ``ExpertList`` in the place of all experts that transformers' interface describes."""
    for path, module in list(model.named_modules()):
        if (described := compat.experts_interface(module)) is not None:
            model.set_submodule(path, _of_interface(module, described))


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
            dict(zip(names[:2], map(_linear, both.chunk(2)), strict=True)),
            (names[2], _linear(last)),
            combine,
        )
        for both, last in zip(gate_up.detach(), down.detach(), strict=True)
    )


def _of_interface(fused: nn.Module, described: compat.ExpertsInterface) -> ExpertList:
    """Take apart experts by what transformers' interface says of them."""
    fusion = Fusion(described.transposed, described.concatenated, described.gate, described.bias)
    own = dict(fused.named_parameters(recurse=False))
    tensors = fusion.split({name: own[name].detach() for name in fusion.fused})

    def combine(first: list[Tensor]) -> Tensor:
        return described.activate(fusion.joined_outputs(first))

    def linear(name: str) -> nn.Linear:
        return _linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    experts = (
        Expert(
            {name: linear(f"{index}.{name}") for name in fusion.first},
            ("down_proj", linear(f"{index}.down_proj")),
            combine,
        )
        for index in range(own["down_proj"].shape[0])
    )
    return ExpertList(experts, fusion, described.norm)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
