"""What the rest of the library knows of a model family."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from mlcalib.common.optional import optional
from mlcalib.models.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ScaleGroup:
    """Channels that can be scaled by s > 0 where they are made and by 1/s where they are read.

    Attributes:
        source: module of the block, a norm or a linear, whose output channels are divided by s.
        inputs: keys of the block's linears whose input channels are multiplied by s.
        readers: modules that read the same input and are not quantized (routers): multiplied too.
        offset: a norm that is the source multiplies by ``offset + weight``.
        rows: of a source that makes other tensors, too: which of its output channels; None for all.
    """

    source: str
    inputs: tuple[str, ...]
    readers: tuple[str, ...] = ()
    offset: float = 0.0
    rows: Rows | None = None


@dataclass(frozen=True)
class Experts:
    """Blocks whose MLP is a mixture of experts; a family may mix them with dense blocks.

    Attributes:
        path: the experts in the block; a block that has it is of this kind.
        gate: what the family's checkpoints call an expert's linear before the activation,
        up: the one that it is multiplied by,
        down: and the one after them.
        linears: as ``Adapter.linears``; where it says ``{}``, once for each expert. Experts run
            after everything else in the block.
        scale_groups: as ``Adapter.scale_groups``, with ``{}`` likewise.
    """

    path: str
    gate: str
    up: str
    down: str
    linears: Mapping[str, tuple[str, ...]]
    scale_groups: tuple[ScaleGroup, ...]


@dataclass(frozen=True)
class GgufArchitecture:
    """How GGUF files hold the models of one class.

    Attributes:
        name: what llama.cpp calls the architecture, e.g. ``llama``.
        whole: whether whole files are written and read: their hyperparameters must be those of
            Llama's files. Of other architectures only the names of tensors are known, which
            importance matrices need.
        rotates_pairs: rows of q and k lie in the pairs that llama.cpp rotates, not in halves as in
            transformers.
        biases: option of the config → the tensor of a file that is there where the option is set.
    """

    name: str
    whole: bool = False
    rotates_pairs: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)

    def tensor_names(self, blocks: int) -> Any:
        """Return gguf's map from names of tensors in transformers to those in a file.

        Args:
            blocks: how many the model has.

        Raises:
            ValueError: gguf does not know ``name``.
            ImportError: the package gguf is missing.
        """
        gguf = optional("gguf", "gguf", "the names of tensors in GGUF files")
        known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        if self.name not in known:
            raise ValueError(
                f"The package gguf knows no architecture '{self.name}'; it knows: "
                f"{', '.join(sorted(known))}."
            )
        return gguf.get_tensor_name_map(known[self.name], blocks)


class Origin(NamedTuple):
    """What a tensor of a model is made from.

    Attributes:
        names: of tensors in files.
        like: its shape, on the meta device.
    """

    names: tuple[str, ...]
    like: Tensor


@dataclass(frozen=True)
class Adapter:
    """A model family as data.

    Attributes:
        architectures: class names in transformers.
        blocks: path of the list of blocks in the model.
        linears: input → the linears of a block that read it, in the order in which they run. They
            share one statistic and one factorisation. See ``linears_of`` for those of one block.
        scale_groups: of a block, in the order in which they run; see ``scale_groups_of``. A group
            is left out where folding would change what the block computes.
        experts: of blocks that have some, in place of ``linears`` and ``scale_groups``.
        saved_names: part of a name in the model → what the family's checkpoints call it.
        gguf: class name → how GGUF files hold its models; of those that llama.cpp knows.
        handed_over: argument of a block (its number after the hidden states, or its name) → the
            element of the output of the block before that it takes.
        filled: arguments into which blocks put what later blocks read.
        places: linear of a block → the linear of an earlier block that has the same weight, where
            blocks share some; both by their names in the model.
        runs: path of the language model inside of a model that wants an image besides text; empty
            where the whole model runs on text.
    """

    architectures: tuple[str, ...]
    blocks: str
    linears: Mapping[str, tuple[str, ...]]
    scale_groups: tuple[ScaleGroup, ...]
    experts: Experts | None = None
    saved_names: Mapping[str, str] = field(default_factory=dict)
    gguf: Mapping[str, GgufArchitecture] = field(default_factory=dict)
    handed_over: Mapping[int | str, int] = field(default_factory=dict)
    filled: frozenset[int | str] = frozenset()
    runs: str = ""
    places: Mapping[str, str] = field(default_factory=dict)

    def language_model(self, model: "PreTrainedModel") -> Any:
        """Return what runs on token ids alone: the model, or the language model inside of it."""
        return model.get_submodule(self.runs)

    def named_blocks(self, model: "PreTrainedModel") -> list[tuple[str, nn.Module]]:
        """Return (name, block) of each block, in the order in which they run."""
        blocks = model.get_submodule(self.blocks)
        return [(f"{self.blocks}.{name}", block) for name, block in blocks.named_children()]

    def named_linears(self, model: "PreTrainedModel") -> Iterator[tuple[str, nn.Linear]]:
        """Yield (name, linear) of every linear that is quantized.

        Raises:
            NotImplementedError: a layer is missing or is not an ``nn.Linear``: the model is not
                quite of this family.
        """
        for name, block in self.named_blocks(model):
            for linears in self.linears_of(block).values():
                for linear in linears:
                    yield f"{name}.{linear}", self.linear(block, linear)

    def linears_of(self, block: nn.Module) -> dict[str, tuple[str, ...]]:
        """Return input → linears of this block, every expert's own, in the order they run.

        Raises:
            NotImplementedError: the experts are fused; see ``models.experts.unfuse``.
        """
        if (kind := self.experts_of(block)) is None:
            return dict(self.linears)
        resolved = {key: names for key, names in kind.linears.items() if "{}" not in key}
        each = {key: names for key, names in kind.linears.items() if "{}" in key}
        for expert in _expert_names(block, kind):
            for key, names in each.items():
                resolved[key.format(expert)] = tuple(name.format(expert) for name in names)
        return resolved

    def scale_groups_of(self, block: nn.Module) -> list[ScaleGroup]:
        """Return the scale groups of this block, every expert's own, in the order they run.

        Raises:
            NotImplementedError: the experts are fused; see ``models.experts.unfuse``.
        """
        if (kind := self.experts_of(block)) is None:
            return list(self.scale_groups)
        experts = _expert_names(block, kind)
        resolved = []
        for group in kind.scale_groups:
            if "{}" in group.source:
                for expert in experts:
                    inputs = tuple(key.format(expert) for key in group.inputs)
                    resolved.append(
                        replace(group, source=group.source.format(expert), inputs=inputs)
                    )
            else:
                inputs = tuple(key for each in group.inputs for key in _expanded(each, experts))
                resolved.append(replace(group, inputs=inputs))
        return resolved

    def experts_of(self, block: nn.Module) -> Experts | None:
        """Return what is known of the block's experts, or None for a dense block."""
        if self.experts is None:
            return None
        path, _, name = self.experts.path.rpartition(".")
        return self.experts if hasattr(self.module(block, path), name) else None

    def has_experts(self, block: nn.Module) -> bool:
        """Return whether the block routes tokens to experts."""
        return self.experts_of(block) is not None

    def expert_of(self, linear: str) -> str | None:
        """Return the expert that a linear of a block belongs to, or None."""
        inside = self.experts is not None and linear.startswith(f"{self.experts.path}.")
        return linear.rpartition(".")[0] if inside else None

    def passed_on(self, block: nn.Module, hidden: Tensor) -> Any:
        """Return what a block of this kind returns, with these hidden states in it."""
        return hidden

    def saved(self, name: str) -> str:
        """Return what checkpoints call a tensor or a module of the model."""
        for part, saved in self.saved_names.items():
            name = name.replace(part, saved)
        return name

    def saved_tensors(
        self, tensors: Mapping[str, Tensor], floating: Collection[str]
    ) -> dict[str, Tensor]:
        """Return what checkpoints hold of a block.

        Args:
            tensors: by their names in the model; of packed linears, by the linear's.
            floating: names of those that are the model's own, and not packed.
        """
        return {self.saved(name): tensor for name, tensor in tensors.items()}

    def loaded_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the floating tensors of the model among those of a checkpoint, by its names."""
        return {self._own_name(name): tensor for name, tensor in tensors.items()}

    def origins(self, expected: Collection[str], stored: Mapping[str, Tensor]) -> dict[str, Origin]:
        """Return tensor of the model → what it is made from; tensors that files lack are left out.

        Args:
            expected: names of the tensors that the model needs.
            stored: name in files → a tensor of that shape, on the meta device.
        """
        names = {name: self.saved(name) for name in expected}
        return {
            name: Origin((saved,), stored[saved])
            for name, saved in names.items()
            if saved in stored
        }

    def _own_name(self, saved: str) -> str:
        for part, other in self.saved_names.items():
            saved = saved.replace(other, part)
        return saved

    def linear(self, block: nn.Module, name: str) -> nn.Linear:
        """Return a linear of a block.

        Raises:
            NotImplementedError: it is missing or is not an ``nn.Linear``.
        """
        module = self.module(block, name)
        if not isinstance(module, nn.Linear):
            raise NotImplementedError(
                f"'{name}' of {type(block).__name__} is a {type(module).__name__}, expected an "
                "nn.Linear; load the model in floating point, not quantized."
            )
        return module

    def module(self, block: nn.Module, name: str) -> nn.Module:
        """Return a module of a block.

        Raises:
            NotImplementedError: it is missing.
        """
        try:
            return block.get_submodule(name)
        except AttributeError as error:
            raise NotImplementedError(
                f"{type(block).__name__} has no '{name}', which the adapter for "
                f"{', '.join(self.architectures)} expects; add an adapter for this model."
            ) from error


def _expert_names(block: nn.Module, kind: Experts) -> list[str]:
    experts = block.get_submodule(kind.path)
    names = [name for name, _ in experts.named_children() if name.isdecimal()]
    if not names:
        raise NotImplementedError(
            f"'{kind.path}' of {type(block).__name__} is a {type(experts).__name__}, whose experts "
            "are fused; take them apart with mlcalib.models.experts.unfuse."
        )
    return names


def _expanded(key: str, experts: Sequence[str]) -> list[str]:
    return [key.format(expert) for expert in experts] if "{}" in key else [key]
