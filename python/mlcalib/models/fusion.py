"""The weights of all experts of a block as transformers fuses them, and those of each expert."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fusion:
    """How transformers' experts interface fuses the linears of experts.

    A fused tensor is [experts, …]; an expert's linears are called ``gate_proj``, ``up_proj`` and
    ``down_proj``.

    Attributes:
        transposed: whether weights are [experts, in, out], not [experts, out, in].
        concatenated: whether rows of gate and up stand one after the other, or take turns.
        gate: whether there is a gate.
        bias: whether there are biases.
    """

    transposed: bool
    concatenated: bool
    gate: bool
    bias: bool

    @property
    def first(self) -> tuple[str, ...]:
        """The linears that read an expert's input."""
        return ("gate_proj", "up_proj") if self.gate else ("up_proj",)

    @property
    def fused(self) -> tuple[str, ...]:
        """The names of the fused tensors."""
        weights = ("gate_up_proj" if self.gate else "up_proj", "down_proj")
        return weights + (tuple(f"{name}_bias" for name in weights) if self.bias else ())

    def split(self, fused: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each expert's tensors (``0.gate_proj.weight``, …), as views of those given."""
        found: dict[str, Tensor] = {}
        for name in (each for each in self.fused if each in fused):
            is_bias = name.endswith("_bias")
            whole = fused[name]
            if not is_bias and self.transposed:
                whole = whole.transpose(1, 2)
            linear, kind = name.removesuffix("_bias"), "bias" if is_bias else "weight"
            parts = {linear: whole}
            if linear == "gate_up_proj":
                parts = dict(zip(self.first, self._halves(whole), strict=True))
            for part, tensor in parts.items():
                found |= {f"{i}.{part}.{kind}": each for i, each in enumerate(tensor)}
        return found

    def join(self, experts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the fused tensors again, of what ``split`` gives."""
        found: dict[str, Tensor] = {}
        for name in self.fused:
            is_bias = name.endswith("_bias")
            linear, kind = name.removesuffix("_bias"), "bias" if is_bias else "weight"
            parts = self.first if linear == "gate_up_proj" else (linear,)
            stacked = [_stack(experts, f"{part}.{kind}") for part in parts]
            whole = stacked[0] if len(stacked) == 1 else self._together(stacked)
            found[name] = whole.transpose(1, 2) if self.transposed and not is_bias else whole
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def joined_outputs(self, outputs: list[Tensor]) -> Tensor:
        """Return what the fused linear would give, of the outputs of ``first``."""
        if self.concatenated:
            return torch.cat(outputs, -1)
        return torch.stack(outputs, -1).flatten(-2)

    def _halves(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        if self.concatenated:
            half = whole.shape[1] // 2
            return whole[:, :half], whole[:, half:]
        return whole[:, ::2], whole[:, 1::2]

    def _together(self, parts: list[Tensor]) -> Tensor:
        if self.concatenated:
            return torch.cat(parts, 1)
        return torch.stack(parts, 2).flatten(1, 2)


@dataclass(frozen=True)
class RenamedFusion(Fusion):
    """Fused as transformers' interface has it, under other names.

    Attributes:
        names: of the fused tensors, in the order of ``Fusion.fused``.
    """

    names: tuple[str, ...] = ()

    @property
    def fused(self) -> tuple[str, ...]:
        """See ``Fusion.fused``."""
        return self.names

    def split(self, fused: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Fusion.split``."""
        own = dict(zip(self._plain.fused, self.names, strict=True))
        return self._plain.split({name: fused[each] for name, each in own.items() if each in fused})

    def join(self, experts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Fusion.join``."""
        return dict(zip(self.names, self._plain.join(experts).values(), strict=True))

    @property
    def _plain(self) -> Fusion:
        return Fusion(self.transposed, self.concatenated, self.gate, self.bias)


@dataclass(frozen=True)
class RowFusion(Fusion):
    """Weights of experts that stand one below the other, each [experts · intermediate, hidden].

    Attributes:
        experts: how many.
        names: of the gate, of up, and of down, which is transposed.
    """

    transposed: bool = False
    concatenated: bool = True
    gate: bool = True
    bias: bool = False
    experts: int = 0
    names: tuple[str, str, str] = ("", "", "")

    @property
    def fused(self) -> tuple[str, ...]:
        """See ``Fusion.fused``."""
        return self.names

    def split(self, fused: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Fusion.split``."""
        found: dict[str, Tensor] = {}
        for name, linear in self._linears.items():
            if name in fused:
                parts = fused[name].chunk(self.experts)
                found |= {
                    f"{i}.{linear}.weight": part.T if linear == "down_proj" else part
                    for i, part in enumerate(parts)
                }
        return found

    def join(self, experts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Fusion.join``."""
        found: dict[str, Tensor] = {}
        for name, linear in self._linears.items():
            parts = _stack(experts, f"{linear}.weight")
            parts = parts.transpose(1, 2) if linear == "down_proj" else parts
            found[name] = parts.reshape(-1, parts.shape[2])
        return found

    @property
    def _linears(self) -> dict[str, str]:
        return dict(zip(self.names, (*self.first, "down_proj"), strict=True))


def _stack(experts: Mapping[str, Tensor], part: str) -> Tensor:
    """Return a tensor of every expert that has it, [experts, …]."""
    count = sum(name.partition(".")[2] == part for name in experts)
    return torch.stack([experts[f"{i}.{part}"] for i in range(count)])
