"""What the rest of the library knows of a model family."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Adapter:
    """A model family as data.

    Attributes:
        architectures: class names in transformers.
        blocks: path of the list of blocks in the model.
        linears: input → the linears of a block that read it, in the order in which they run. They
            share one statistic and one factorisation.
    """

    architectures: tuple[str, ...]
    blocks: str
    linears: Mapping[str, tuple[str, ...]]

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
            for linears in self.linears.values():
                for linear in linears:
                    yield f"{name}.{linear}", self.linear(block, linear)

    def linear(self, block: nn.Module, name: str) -> nn.Linear:
        """Return a linear of a block.

        Raises:
            NotImplementedError: it is missing or is not an ``nn.Linear``.
        """
        try:
            module = block.get_submodule(name)
        except AttributeError as error:
            raise NotImplementedError(
                f"{type(block).__name__} has no '{name}', which the adapter for "
                f"{', '.join(self.architectures)} expects; add an adapter for this model."
            ) from error
        if not isinstance(module, nn.Linear):
            raise NotImplementedError(
                f"'{name}' of {type(block).__name__} is a {type(module).__name__}, expected an "
                "nn.Linear; load the model in floating point, not quantized."
            )
        return module
