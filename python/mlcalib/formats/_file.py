"""What reads the formats that have one file of their own."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from mlcalib._core import GridSpec


class FileTensors(ABC):
    """What the one file of a format holds, by transformers' names.

    Attributes:
        config: the model's, of transformers.
        tensors: name → tensor, in the file's own type.
        specs: linear whose codes can be read → its grid.
        dtype: the floating type of its matrices.
    """

    config: Any
    tensors: dict[str, Any]
    specs: dict[str, GridSpec]
    dtype: torch.dtype

    @abstractmethod
    def blocks(self, name: str) -> Tensor:
        """Return the tensor that ``Format.unpack`` reads codes from."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return a tensor that holds no codes."""
