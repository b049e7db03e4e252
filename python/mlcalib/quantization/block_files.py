"""A checkpoint in the making: one file for each finished block."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mlcalib.common.checked import as_type
from mlcalib.common.json_text import loads
from mlcalib.common.safetensors_read import read_header
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
        read_header(self._file(block))
        with safe_open(self._file(block), framework="pt") as opened:
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118

    def record(self, block: str) -> dict[str, Any]:
        """Return the record of a finished block."""
        header = read_header(self._file(block))
        with safe_open(self._file(block), framework="pt") as opened:
            content = (opened.metadata() or {}).get("record", "")
        try:
            found = as_type(loads(content), dict[str, Any])
            names = as_type(found.get("names"), list[str])
            if set(names) != set(header):
                raise ValueError("it names other tensors than there are")
        except ValueError as error:
            raise ValueError(
                f"{self._file(block)} has no record of a block ({error}); remove it, and the run "
                "makes the block again"
            ) from error
        return found

    def pieces(self, block: str) -> dict[str, Piece]:
        """Return the tensors of a finished block, to be written elsewhere."""
        pieces = file_pieces(self._file(block))
        return {name: pieces[name] for name in self.record(block)["names"]}

    def _file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"
