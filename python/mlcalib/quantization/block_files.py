"""A checkpoint in the making: one file for each finished block."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mlcalib.common.safetensors_write import Piece, file_pieces, tensor_piece, write_safetensors


class BlockFiles:
    """The finished blocks of a checkpoint, in a folder; a killed process finds them there."""

    def __init__(self, folder: str | Path) -> None:
        """Take what is in the folder, or start empty."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, block: str) -> bool:
        """Return whether a block is finished."""
        return self._file(block).is_file()

    def write(self, block: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep a finished block: its tensors, by their names in the checkpoint, and a record.

        Raises:
            OSError: the disk is full.
        """
        # The header keeps names in an order of its own; a checkpoint is cut in the model's.
        content = json.dumps({"names": list(tensors), **record}, allow_nan=False)
        pieces = {name: tensor_piece(tensor) for name, tensor in tensors.items()}
        write_safetensors(self._file(block), pieces, {"format": "pt", "record": content})

    def tensors(self, block: str) -> dict[str, Tensor]:
        """Return the tensors of a finished block."""
        with safe_open(self._file(block), framework="pt") as opened:
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118

    def record(self, block: str) -> dict[str, Any]:
        """Return the record of a finished block."""
        with safe_open(self._file(block), framework="pt") as opened:
            found: dict[str, Any] = json.loads(opened.metadata()["record"])
        return found

    def pieces(self, block: str) -> dict[str, Piece]:
        """Return the tensors of a finished block, to be written elsewhere."""
        pieces = file_pieces(self._file(block))
        return {name: pieces[name] for name in self.record(block)["names"]}

    def _file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"
