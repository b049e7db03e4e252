"""The hidden states of all sequences on their way from block to block, in memory or on disk."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlcalib.common.checked import as_type
from mlcalib.common.files import atomic_file
from mlcalib.common.safetensors_read import read_json


@dataclass(frozen=True)
class _Record:
    """What is written beside the states."""

    position: Annotated[int, Field(ge=-1)]
    shape: Annotated[list[Annotated[int, Field(ge=1, lt=2**31)]], Field(min_length=1)]
    dtype: Literal["float32", "float16", "bfloat16", "float64"]


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


class PinnedHiddenStates(HiddenStates):
    """The same in host memory that a device copies from and to while the host goes on.

    States are copied in the order of the device's current stream, on which they are made and read.
    """

    def __init__(self, *, wait: bool) -> None:
        """Start empty.

        Args:
            wait: whether ``write`` waits for the copy, as it must where several devices read.
        """
        super().__init__()
        self._wait = wait

    def write(self, language: str, index: int, state: Tensor) -> None:
        """See ``HiddenStates.write``."""
        if (kept := self._states.get((language, index))) is None:
            kept = torch.empty(state.shape, dtype=state.dtype, pin_memory=True)
            self._states[language, index] = kept
        kept.copy_(state, non_blocking=not self._wait)


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
        self._remedy = f"remove {self._folder} and start again"
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        if self._record.is_file():
            try:
                found = as_type(read_json(self._record), _Record)
            except ValueError as error:
                raise ValueError(f"{self._record} is damaged ({error}); {self._remedy}") from error
            self.position, self._shape = found.position, tuple(found.shape)
            self._dtype = getattr(torch, found.dtype)
        self._written: set[Path] = set()

    def read(self, language: str, index: int) -> Tensor:
        """See ``HiddenStates.read``."""
        path = self._file(language, self.position)
        size = math.prod(self._shape) * self._dtype.itemsize
        if path.stat().st_size < (index + 1) * size:  # before any memory is taken
            raise ValueError(f"{path} ends early; {self._remedy}")
        state = torch.empty(self._shape, dtype=self._dtype)
        with path.open("rb") as file:
            file.seek(index * size)
            file.readinto(state.view(torch.uint8).flatten().numpy().data)
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
