"""Where a pass takes its blocks from: a model in memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common import compat
from mlcalib.common.safetensors_write import Piece, tensor_piece
from mlcalib.models import Adapter
from mlcalib.models.device import choose_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Source:
    """A model that is held in memory.

    Attributes:
        name: as it was given.
        model: its modules.
        adapter: its family.
        dtype: of its weights.
        folder: the files it comes from, of which a checkpoint takes over config and tokenizer; None
            of a GGUF file and of a model that was given in memory.
        extra: tensors in the folder that the model has no place for.
    """

    name: str
    model: "PreTrainedModel"
    adapter: Adapter
    dtype: torch.dtype
    folder: Path | None = None
    extra: list[str] = field(default_factory=list)

    @property
    def resident(self) -> int:
        """Bytes of weights that are always in memory."""
        return sum(each.numel() * each.element_size() for each in self.model.parameters())

    def places(self, asked: str) -> dict[str, torch.device]:
        """Return where each block runs: block → device.

        With ``auto`` a block that is on a GPU already, as accelerate may have put it there, stays.

        Args:
            asked: see ``choose_device``.

        Raises:
            ValueError: see ``choose_device``; or a block whose weights are on several devices.
        """
        chosen = choose_device(asked)
        places = {}
        for name, block in self.adapter.named_blocks(self.model):
            own = {each.device for each in block.parameters()}
            if asked == "auto" and len(own) > 1:
                raise ValueError(
                    f"{name} has weights on several devices ({', '.join(sorted(map(str, own)))}); "
                    "keep blocks whole (accelerate: no_split_module_classes), or give device=."
                )
            there = own.pop()
            stays = asked == "auto" and there.type not in ("cpu", "meta")
            places[name] = there if stays else chosen
        return places

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """Inside, all that runs before the first block has its weights."""
        yield

    @contextmanager
    def outer(self) -> Iterator[None]:
        """Inside, all that runs before the first block and after the last has its weights."""
        yield

    @contextmanager
    def block(self, name: str) -> Iterator[nn.Module]:
        """Give a copy of a block with its weights, whose parameters can be replaced."""
        block = copied(self.model.get_submodule(name))
        compat.remove_hooks(block)  # its inputs are brought to it here
        yield block

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name in the model."""
        found: Tensor = self.model.state_dict()[name]
        return found

    def tied(self) -> set[str]:
        """Return the names of weights that are another's, and that a checkpoint leaves out."""
        return compat.held_ties(self.model)

    def outside_names(self) -> list[str]:
        """Return the names of the tensors outside of blocks that a checkpoint holds."""
        tied, names = self.tied(), self.model.state_dict()
        return [key for key in names if not self._in_block(key) and key not in tied]

    def outside(self) -> dict[str, Piece]:
        """Return the tensors of the checkpoint outside of blocks, by their names in it."""
        state = self.model.state_dict()
        outside = {name: state[name] for name in self.outside_names()}
        saved = self.adapter.saved_tensors(outside, outside)
        return {name: tensor_piece(tensor) for name, tensor in saved.items()}

    def _in_block(self, name: str) -> bool:
        """Return whether a tensor (its name in the model) belongs to a block that is quantized."""
        start = f"{self.adapter.blocks}."
        if not name.startswith(start):
            return False
        block = start + name.removeprefix(start).partition(".")[0]
        return block in {each for each, _ in self.adapter.named_blocks(self.model)}

    def extra_pieces(self) -> dict[str, Piece]:
        """Return the extra tensors, as they are in the files."""
        if self.folder is None or not self.extra:
            return {}
        return StoredWeights(self.folder, self.dtype).pieces(self.extra)

    def ready(self) -> "Source":
        """Return a source that gives blocks with weights, from files where they can be streamed."""
        return self

    def loaded(self) -> "Source":
        """Return a source that holds the whole model in memory."""
        return self


def copied(block: nn.Module) -> nn.Module:
    """Return other modules with the same parameters and buffers."""
    shared = {id(each): each for each in (*block.parameters(), *block.buffers())}
    return copy.deepcopy(block, shared)
