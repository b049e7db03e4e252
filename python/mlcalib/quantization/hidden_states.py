"""The hidden states of all sequences on their way from block to block, in memory or on disk."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from mlcalib.common.files import atomic_file


class HiddenStates:
    """What the next block reads, and what it has written so far; in memory.

    Attributes:
        position: blocks that they have come through; -1 before the embeddings are there.
    """

    position = -1

    def __init__(self) -> None:
        """Start empty."""
        self._states: dict[tuple[str, int], Tensor] = {}

    def read(self, language: str, index: int) -> Tensor:
        """Return what the next block reads of a sequence, [1, seq_len, hidden size]."""
        return self._states[language, index]

    def write(self, language: str, index: int, state: Tensor) -> None:
        """Keep what the block made of a sequence; ``read`` is not asked for it again this turn."""
        self._states[language, index] = state

    def turn(self) -> None:
        """Go on to the next block: what was written is read from now on."""
        self.position += 1

    def restart(self) -> None:
        """Forget everything: the embeddings come next."""
        self.position = -1
        self._states.clear()


class HiddenStatesOnDisk(HiddenStates):
    """The same in a folder; a killed process finds there what the last ``turn`` left.

    Two files for each language take turns. All states have one shape and dtype.
    """

    def __init__(self, folder: str | Path) -> None:
        """Take what is in the folder, or start empty."""
        super().__init__()
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._record = self._folder / "hidden_states.json"
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        if self._record.is_file():
            found = json.loads(self._record.read_text(encoding="utf-8"))
            self.position = found["position"]
            self._shape, self._dtype = tuple(found["shape"]), getattr(torch, found["dtype"])
        self._written: set[Path] = set()

    def read(self, language: str, index: int) -> Tensor:
        """See ``HiddenStates.read``."""
        state = torch.empty(self._shape, dtype=self._dtype)
        flat = state.view(torch.uint8).flatten().numpy()
        with self._file(language, self.position).open("rb") as file:
            file.seek(index * flat.nbytes)
            if file.readinto(flat.data) != flat.nbytes:
                raise ValueError(f"{file.name} ends early; remove {self._folder} and start again")
        return state

    def write(self, language: str, index: int, state: Tensor) -> None:
        """See ``HiddenStates.write``.

        Raises:
            OSError: the disk is full.
        """
        self._shape, self._dtype = tuple(state.shape), state.dtype
        content = state.detach().cpu().contiguous().view(torch.uint8).flatten().numpy()
        path = self._file(language, self.position + 1)
        mode = "r+b" if path.exists() else "w+b"
        try:
            with path.open(mode) as file:
                file.seek(index * content.nbytes)
                file.write(content.data)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        self._written.add(path)

    def turn(self) -> None:
        """See ``HiddenStates.turn``; what was written is safe on disk before it counts."""
        for path in self._written:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._written.clear()
        super().turn()
        dtype = str(self._dtype).removeprefix("torch.")
        record = {"position": self.position, "shape": self._shape, "dtype": dtype}
        with atomic_file(self._record) as file:
            json.dump(record, file)

    def restart(self) -> None:
        """See ``HiddenStates.restart``."""
        super().restart()
        self._record.unlink(missing_ok=True)

    def _file(self, language: str, position: int) -> Path:
        return self._folder / f"{language}-{position % 2}.bin"
