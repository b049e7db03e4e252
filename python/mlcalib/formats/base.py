"""What every checkpoint format answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.common.registry import Registry

if TYPE_CHECKING:
    from mlcalib._core import Order


class Format(ABC):
    """The tensors of a quantized linear in a checkpoint, and the config that tells of them.

    A format has no state. Tensor names are those of the checkpoint: a linear ``name`` owns the
    tensors ``name.*``, and ``pack`` replaces its ``name.weight``.

    Attributes:
        codes: last part of the name of the tensor that holds a linear's codes; None where the
            format keeps no codes and so cannot be read back.
        config_file: a file beside config.json that repeats the ``quantization_config`` for older
            readers; None for none.
        file: the one file that a format writes in place of config.json and safetensors; None for
            none.
        half_scales: whether scales may be float16 whatever the model's dtype.
    """

    codes: ClassVar[str | None] = None
    config_file: ClassVar[str | None] = None
    file: ClassVar[str | None] = None
    half_scales: ClassVar[bool] = False

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Format":
        """Return the format that reads a checkpoint with this ``quantization_config``.

        Raises:
            ValueError: it describes a variant that cannot be read.
        """
        return cls()

    @abstractmethod
    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse, before any forward, what a checkpoint could not hold.

        Args:
            specs: the grid asked for, of each linear to be quantized.
            shapes: (out, in) of each.

        Raises:
            ValueError: a spec, a layer or the mixture does not fit; names the layers and what
                would fit.
        """

    def check_model(self, config: Any, architecture: str, tokenizer: Any) -> None:  # noqa: B027
        """Refuse, before any forward, a model that the format cannot hold; by default none.

        Args:
            config: the model's.
            architecture: its class in transformers.
            tokenizer: its tokenizer.

        Raises:
            NotImplementedError: says what is not known.
        """

    def write_file(
        self,
        folder: Path,
        config: Any,
        architecture: str,
        tokenizer: Any,
        tensors: "Iterable[tuple[str, Tensor | QuantizedLinear]]",
    ) -> None:
        """Write ``file``; of formats that have one.

        Args:
            folder: where.
            config: the model's.
            architecture: its class in transformers.
            tokenizer: its tokenizer.
            tensors: of the checkpoint by name, or of a quantized linear by the linear's.
        """
        raise NotImplementedError(f"{type(self).__name__} writes a folder.")

    @abstractmethod
    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any] | None:
        """Return the ``quantization_config`` of config.json, or None where readers need none.

        Args:
            specs: the grid of each quantized linear.
            order: the order in which the solver visited channels.
            ignore: names of the linears that stay unquantized.
        """

    @abstractmethod
    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return the tensors, by their names in the checkpoint, that replace ``name.weight``.

        Raises:
            ValueError: the linear cannot be held exactly (``check`` was not heeded).
        """

    @abstractmethod
    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return the linear that ``pack`` was given.

        Args:
            name: the linear.
            tensors: tensors of the checkpoint by name, at least those of this linear.
            spec: the grid of the linear, from ``read_specs``.

        Raises:
            ValueError: a tensor is missing, or shapes or dtypes disagree.
            NotImplementedError: the format keeps no codes.
        """

    @abstractmethod
    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grid of each linear, as a ``quantization_config`` describes it.

        Args:
            config: the section of a config.json, this format's or another tool's.
            linears: names of the linears that have codes.
            scale_dtype: dtype of the checkpoint's scales.

        Raises:
            ValueError: the section leaves a linear out, or describes something that ``unpack``
                cannot read.
            NotImplementedError: the format keeps no codes.
        """

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that scales are to be rounded to: the model's, which readers compute in.

        Raises:
            ValueError: the model's dtype is not float32, bfloat16 or float16.
        """
        if model_dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"the model's dtype is {model_dtype}; load it in float32, bfloat16 or float16"
            )
        return model_dtype


formats: Registry[Format] = Registry("format", package="mlcalib.formats", group="mlcalib.formats")
