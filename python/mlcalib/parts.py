"""A checkpoint in the making: one file for each finished block, and what it is made from."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mlcalib.files import atomic_file
from mlcalib.safetensors_files import read_json
from mlcalib.safetensors_writing import Piece, file_pieces, tensor_piece, write_safetensors


class Parts:
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

    def remove(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder)

    def _file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"


def claim(folder: Path, what: str, inputs: Mapping[str, Any]) -> bool:
    """Write down what a run is made from, or check that it is what an earlier run began with.

    Args:
        folder: where the run keeps what is done.
        what: the run, for messages.
        inputs: all that changes its result; JSON types.

    Returns:
        Whether there was an earlier run.

    Raises:
        ValueError: something differs; names it.
    """
    path = folder / "manifest.json"
    wanted = json.loads(json.dumps(inputs))
    if not path.is_file():
        with atomic_file(path) as file:
            json.dump(wanted, file, indent=2, ensure_ascii=False)
        return False
    changed = list(_differences(read_json(path), wanted, ""))
    if changed:
        raise ValueError(
            f"{what} was begun in {folder} from other inputs: {'; '.join(changed[:5])}"
            f"{f'; and {len(changed) - 5} more' if changed[5:] else ''}. Go on with the same, give "
            "another --out, or remove the folder."
        )
    return True


def _differences(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}".strip("."))
        ]
    return [] if old == new else [f"{where} was {_short(old)} and is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
