"""Weights that neither ``nn.Linear`` nor transformers' interface of experts describes: own rules.

Tried with transformers 5.24. A rule is found by the name of a class, so what it says of the class
has to be true of every release that mlcalib takes; ``make sweep`` compares the logits.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mlcalib.models.expert_list import ExpertList, apart
from mlcalib.models.fusion import Fusion, RowFusion
from mlcalib.models.jetmoe import JetMoeAttentionExperts, JetMoeMlp

_PLAIN = Fusion(transposed=False, concatenated=True, gate=True, bias=False)


def by_own_rule(module: Any) -> nn.Module | None:
    """Return what has linears in the place of a module, or None where no rule is for its class."""
    rule = _RULES.get(type(module).__name__)
    return None if rule is None else rule(module)


class TransposedLinear(nn.Linear):
    """A linear whose weight checkpoints hold transposed, as that of GPT-2's ``Conv1D``."""

    def __init__(self, conv: Any) -> None:
        """Take the weight [in, out] and the bias of a ``Conv1D``."""
        channels, outputs = conv.weight.shape
        super().__init__(channels, outputs, device="meta")
        self.weight = nn.Parameter(conv.weight.detach().T, requires_grad=False)
        self.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)


class Llama4Experts(nn.Module):
    """Llama 4's mixture: tokens are multiplied by the router's scores before the experts."""

    def __init__(self, fused: Any) -> None:
        """Take the parts of a ``Llama4TextMoe``."""
        super().__init__()
        self.router, self.shared_expert = fused.router, fused.shared_expert
        self.top_k: int = fused.top_k
        held = fused.experts
        fusion = Fusion(transposed=True, concatenated=True, gate=True, bias=False)
        tensors = {name: held.get_parameter(name) for name in fusion.fused}
        self.experts = apart(tensors, fusion, _gated(held.act_fn), weighs_first=True)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return [tokens, hidden size] and the router's logits."""
        tokens = hidden_states.flatten(0, -2)
        scores, logits = self.router(tokens)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        return self.shared_expert(tokens) + self.experts(tokens, chosen, weights), logits


def _dbrx(fused: Any) -> ExpertList:
    fusion = RowFusion(experts=fused.num_experts, names=("mlp.w1", "mlp.v1", "mlp.w2"))
    tensors = {name: fused.get_parameter(name) for name in fusion.fused}
    return apart(tensors, fusion, _gated(fused.mlp.activation_fn))


def _longcat(fused: Any) -> ExpertList:
    tensors = {name: fused.get_parameter(name) for name in _PLAIN.fused}
    return apart(tensors, _PLAIN, _gated(fused.act_fn))


def _step(fused: Any) -> ExpertList:
    shell = copy.copy(fused)  # what the gate reads of it: settings, and no weights
    shell._parameters = {}
    tensors = {name: fused.get_parameter(name) for name in _PLAIN.fused}
    return apart(tensors, _PLAIN, shell._apply_gate)


def _gated(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def activate(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return activation(gate) * up

    return activate


_RULES: dict[str, Callable[[Any], nn.Module]] = {
    "Conv1D": TransposedLinear,
    "DbrxExperts": _dbrx,
    "JetMoeMoA": JetMoeAttentionExperts,
    "JetMoeMoE": JetMoeMlp,
    "Llama4TextMoe": Llama4Experts,
    "LongcatFlashExperts": _longcat,
    "Step3p7Experts": _step,
}
