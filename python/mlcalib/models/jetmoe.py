"""JetMoE's two mixtures: of MLPs, and of what makes attention's queries and reads its output.

As in transformers 5.24 (``modeling_jetmoe``), where each is two tensors [experts, out, in].
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mlcalib.models.expert_list import Combine, Expert, ExpertList, linear_of
from mlcalib.models.fusion import RenamedFusion

_NAMES = ("input_linear.weight", "output_linear.weight")
_MLP, _ATTENTION = (
    RenamedFusion(transposed=False, concatenated=True, gate=gate, bias=False, names=_NAMES)
    for gate in (True, False)
)


class _Routed(ExpertList):
    """Experts with the router that chooses them, and the bias of what they give."""

    def __init__(self, fused: Any, experts: Iterable[Expert], fusion: RenamedFusion) -> None:
        super().__init__(experts, fusion)
        self.router: Any = fused.router
        self.bias: nn.Parameter = fused.bias

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts of each token, int64 [tokens, k], and their weights."""
        scores, chosen = self.router.layer(tokens).float().topk(self.router.top_k, dim=1)
        return chosen, torch.softmax(scores, dim=1).type_as(tokens)


class JetMoeMlp(_Routed):
    """The experts of ``JetMoeMoE``."""

    def __init__(self, fused: Any) -> None:
        """Take a ``JetMoeMoE``."""
        activation = fused.activation

        def combine(first: list[Tensor]) -> Tensor:
            result: Tensor = activation(first[0]) * first[1]
            return result

        super().__init__(fused, _experts(fused, _MLP, Expert, combine), _MLP)

    def forward(self, layer_input: Tensor) -> Tensor:  # type: ignore[override]
        """Return what hidden states [sequences, tokens, hidden size] become, in their shape."""
        return super().forward(layer_input, *self.route(layer_input.flatten(0, -2))) + self.bias


class _AttentionExpert(Expert):
    """A linear that makes the queries of a token, and one that reads what attention made of it."""

    def forward(self, x: Tensor, positions: Tensor, last: bool = False) -> Tensor:
        """Return what one of the two gives; see ``Expert.forward``."""
        (first,), (down,) = self.names
        result: Tensor = self.get_submodule(down if last else first)(x)
        return result


class JetMoeAttentionExperts(_Routed):
    """The experts of ``JetMoeMoA``: they run before attention, and again behind it."""

    def __init__(self, fused: Any) -> None:
        """Take a ``JetMoeMoA``."""
        super().__init__(fused, _experts(fused, _ATTENTION, _AttentionExpert, _never), _ATTENTION)
        self.hidden_size: int = fused.hidden_size

    def map(self, layer_input: Tensor) -> Any:
        """Return what ``forward`` does; JetMoE calls it by this name."""
        return self(layer_input)

    def forward(self, layer_input: Tensor) -> Any:  # type: ignore[override]
        """Return queries [sequences, tokens, k, width], None for logits, and what reduce needs."""
        tokens = layer_input.flatten(0, -2)
        chosen, weights = self.route(tokens)
        chosen = self.those_kept(chosen)
        queries = tokens.new_zeros(*chosen.shape, self.hidden_size)
        for name, expert in self.experts():
            positions, rank = torch.where(chosen.eq(int(name)))
            if len(positions):
                queries[positions, rank] = expert(tokens[positions], positions)
        shape = (*layer_input.shape[:-1], *queries.shape[1:])
        return queries.view(shape), None, (chosen, weights)

    def reduce(self, layer_input: Tensor, topo_info: tuple[Tensor, Tensor]) -> Tensor:
        """Return hidden states [sequences, tokens, hidden size] of attention's outputs."""
        chosen, weights = topo_info
        given = layer_input.flatten(0, 1)
        result = given.new_zeros(len(given), len(self.bias))
        for name, expert in self.experts():
            positions, rank = torch.where(chosen.eq(int(name)))
            if len(positions):
                share = weights[positions, rank, None]
                output = expert(given[positions, rank], positions, last=True) * share
                result.index_add_(0, positions, output.to(result.dtype))
        return result.view(*layer_input.shape[:2], -1) + self.bias


def _experts(
    fused: Any, fusion: RenamedFusion, kind: type[Expert], combine: Combine
) -> Iterable[Expert]:
    tensors = fusion.split({name: fused.get_parameter(name).detach() for name in _NAMES})
    for index in range(len(fused.get_parameter(_NAMES[0]))):
        linears = {
            name: linear_of(tensors[f"{index}.{name}.weight"])
            for name in (*fusion.first, "down_proj")
        }
        down = linears.pop("down_proj")
        yield kind(linears, ("down_proj", down), combine)


def _never(_: list[Tensor]) -> Tensor:
    raise NotImplementedError("attention stands between the two linears")
