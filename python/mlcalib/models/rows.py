"""Some of the output rows of a linear that makes several tensors, such as q, k and v in one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Runs of rows, equally far apart.

    Attributes:
        start: first row of the first run.
        size: rows of a run. Where these are fewer rows than there are channels that read them, a
            run is a head, and heads share them as ``repeat_kv`` of transformers has it.
        step: from the start of a run to that of the next.
        count: runs.
    """

    start: int
    size: int
    step: int
    count: int

    @property
    def made(self) -> int:
        """How many rows these are."""
        return self.size * self.count

    def index(self) -> Tensor:
        """Return the rows, int64 [made]."""
        runs = self.start + self.step * torch.arange(self.count)
        return (runs[:, None] + torch.arange(self.size)).flatten()

    def __str__(self) -> str:
        """Return what messages and the record call them."""
        first = f"rows {self.start} to {self.start + self.size - 1}"
        return first if self.count == 1 else f"{first} of every {self.step}"
