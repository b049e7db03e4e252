"""Experts as linears of their own."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mlcalib.models.fusion import Fusion

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
        *,
        identities: Iterable[nn.Module] = (),
        weighs_first: bool = False,
    ) -> None:
        """Take experts.

        Args:
            experts: in order.
            fusion: how transformers fuses them; None where checkpoints hold each expert's own.
            norm: applied to what each of them gives.
            identities: hold the weights of further experts, which give what they get.
            weighs_first: whether tokens are multiplied by the expert's weight before it, not after.
        """
        super().__init__()
        for index, expert in enumerate((*experts, *identities)):
            self.add_module(str(index), expert)
        self.count = len(list(self.experts()))
        self.kept = self.count
        self.fusion = fusion
        self.post_expert_norm = norm
        self.has_identities = len(list(self.children())) > self.count + (norm is not None)
        self.weighs_first = weighs_first

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
        """Let go of experts from one on: tokens that are routed to them go to the others."""
        for index in range(first, self.count):
            delattr(self, str(index))
        self.kept = min(first, self.kept)

    def those_kept(self, chosen: Tensor) -> Tensor:
        """Return the numbers of experts, with kept ones in the place of those that are gone."""
        if self.kept < self.count:
            return torch.where(chosen < self.count, chosen % self.kept, chosen)
        return chosen

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of what each token's experts give.

        Args:
            hidden: [tokens, hidden size], in whatever shape before the last dimension.
            chosen: int64 [tokens, k], the experts of each token.
            weights: [tokens, k].
        """
        tokens = hidden.flatten(0, -2)
        chosen = self.those_kept(chosen)
        result = torch.zeros_like(tokens)
        for name, expert in self.experts():
            rank, positions = torch.where(chosen.T.eq(int(name)))
            if len(positions):
                share = weights[positions, rank, None]
                read = tokens[positions]
                given = expert(read * share if self.weighs_first else read, positions)
                if self.post_expert_norm is not None:
                    given = self.post_expert_norm(given)
                given = given if self.weighs_first else given * share
                result.index_add_(0, positions, given.to(result.dtype))
        if self.has_identities:
            passed = (weights * chosen.ge(self.count)).sum(-1, keepdim=True)
            result += (tokens * passed).to(result.dtype)
        return result.view(hidden.shape)


def apart(
    fused: Mapping[str, Tensor],
    fusion: Fusion,
    activate: Callable[[Tensor], Tensor],
    norm: nn.Module | None = None,
    *,
    weighs_first: bool = False,
) -> ExpertList:
    """Take fused experts apart; their linears have views of the weights.

    Args:
        fused: the tensors, by their names in the fused module.
        fusion: how they are fused. Experts without a last linear give what they get.
        activate: gives the input of the last linear, of what the fused first one gives.
        norm: see ``ExpertList``.
        weighs_first: see ``ExpertList``.
    """
    tensors = fusion.split({name: tensor.detach() for name, tensor in fused.items()})

    def combine(first: list[Tensor]) -> Tensor:
        return activate(fusion.joined_outputs(first))

    def linear(name: str) -> nn.Linear:
        return linear_of(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def first_linears(index: int) -> dict[str, nn.Linear]:
        return {name: linear(f"{index}.{name}") for name in fusion.first}

    count = sum(name.endswith(".down_proj.weight") for name in tensors)
    all_of_them = sum(name.endswith(f".{fusion.first[0]}.weight") for name in tensors)
    return ExpertList(
        (
            Expert(first_linears(index), ("down_proj", linear(f"{index}.down_proj")), combine)
            for index in range(count)
        ),
        fusion,
        norm,
        identities=(nn.ModuleDict(first_linears(index)) for index in range(count, all_of_them)),
        weighs_first=weighs_first,
    )


class _Bare(nn.Linear):
    """A linear that is made without numbers; there are tens of thousands in a large model."""

    def reset_parameters(self) -> None:
        """Leave the parameters as they are."""


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear that has a weight [out, in] and a bias as they are."""
    linear = _Bare(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
