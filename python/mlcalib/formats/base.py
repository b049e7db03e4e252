"""What every checkpoint format answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.common.registry import Registry
from mlcalib.common.safetensors_read import read_json
from mlcalib.formats._file import FileTensors
from mlcalib.formats._loading import BY_MLCALIB
from mlcalib.formats._readers import Facts, Verdicts, cannot_tell
from mlcalib.formats._section import Problem

if TYPE_CHECKING:
    from mlcalib._core import Order


Shapes = Mapping[str, tuple[int, ...]]
"""Tensor of a checkpoint → its shape."""


class Format(ABC):
    """The tensors of a quantized linear in a checkpoint, and the config that tells of them.

    A format has no state. Tensor names are those of the checkpoint: a linear ``name`` owns the
    tensors ``name.*``, and ``pack`` replaces its ``name.weight``. The name it is registered under
    is the ``quant_method`` by which checkpoints are read back.

    Attributes:
        codes: last part of the name of the tensor that holds a linear's codes; None where the
            format keeps no codes and so cannot be read back.
        config_file: a file beside config.json that repeats the ``quantization_config`` for older
            readers; None for none.
        config_files: names of files in which any tool repeats it; ``convert`` copies none of them.
        file: the one file that a format writes in place of config.json and safetensors; None for
            none.
        numbers: the numbers of grids that it holds; see ``GridSpec``.
        super_blocks: whether it holds grids with a ``super_block``.
        per_tensor: whether it holds grids with one scale for each tensor, and no others; None for
            either.
        static_inputs: whether it stores the range of the input of each linear, which text has to
            show: an ``input_bound`` of each linear.
        kv_cache: whether it has a place for the scales of keys and values.
        half_scales: whether scales may be float16 whatever the model's dtype.
        float32_scales: whether scales take 32 bits whatever the model's dtype.
        middle_zeros: whether zero points of symmetric grids are stored too.
        dequantizes: whether mlcalib runs models on dequantized weights, because it has no product
            of packed ones.
        stored: how weights are stored, in words for the model card; "" for the format's name.
        loading: how to load a checkpoint in THIS_FOLDER, as Markdown for the model card.
    """

    codes: ClassVar[str | None] = None
    config_file: ClassVar[str | None] = None
    config_files: ClassVar[tuple[str, ...]] = ()
    file: ClassVar[str | None] = None
    numbers: ClassVar[tuple[str, ...]] = ("integer",)
    super_blocks: ClassVar[bool] = False
    per_tensor: ClassVar[bool | None] = False
    static_inputs: ClassVar[bool] = False
    kv_cache: ClassVar[bool] = False
    half_scales: ClassVar[bool] = False
    float32_scales: ClassVar[bool] = False
    middle_zeros: ClassVar[bool] = False
    dequantizes: ClassVar[bool] = False
    stored: ClassVar[str] = ""
    loading: ClassVar[str] = BY_MLCALIB

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Format":
        """Return the format that reads a checkpoint with this ``quantization_config``.

        Raises:
            ValueError: it describes a variant that cannot be read.
            NotImplementedError: its layout is that of a format that mlcalib does not have.
        """
        return cls()

    @classmethod
    def layout(cls, config: Mapping[str, Any]) -> str:
        """Return what ``check`` calls the layout that a ``quantization_config`` describes."""
        return str(config.get("quant_method", ""))

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

    def check_numbers(self, specs: Mapping[str, GridSpec]) -> None:
        """Refuse grids of numbers that the format does not hold, before ``check`` looks at them.

        Raises:
            ValueError: names a linear, its numbers, and formats that hold them.
        """
        for name, spec in specs.items():
            if spec.numbers not in self.numbers:
                known = {each: formats.get(each).numbers for each in formats.names()}
                fit = [each for each, numbers in known.items() if spec.numbers in numbers]
                raise ValueError(
                    f"{type(self).__name__} holds grids of {' and '.join(self.numbers)} numbers, "
                    f"not of {spec.numbers} ({name}); save with {' or '.join(fit)}, or quantize "
                    f"with numbers='{self.numbers[0]}'"
                )
            if spec.super_block and not self.super_blocks:
                raise ValueError(
                    f"{type(self).__name__} holds no super-blocks, in which the scales of {name} "
                    "lie; save with gguf or dense"
                )
            if self.per_tensor is not None and spec.per_tensor != self.per_tensor:
                held = (
                    "one scale for each tensor" if self.per_tensor else "scales of rows or groups"
                )
                remedy = "compressed-tensors-fp8-static or dense" if spec.per_tensor else "dense"
                raise ValueError(
                    f"{type(self).__name__} holds {held}, and {name} has others; save with {remedy}"
                    f", or quantize with per_tensor={self.per_tensor}"
                )

    def check_model(self, config: Any, architecture: str, tokenizer: Any) -> None:  # noqa: B027
        """Refuse, before any forward, a model that the format cannot hold; by default none.

        Args:
            config: the model's.
            architecture: its class in transformers.
            tokenizer: its tokenizer.

        Raises:
            NotImplementedError: says what is not known.
        """

    def bits(self, spec: GridSpec, rows: int, columns: int) -> int:
        """Return the bits of a linear's codes, scales and zero points.

        Numbers in the model's dtype count 16 bits, as in a model that is published in 16 bits. A
        format that packs nothing answers for a packed one.

        Args:
            spec: the grid.
            rows: of the weight, its output channels.
            columns: its input channels.
        """
        groups = 1 if spec.per_tensor else rows * spec.groups(columns)
        number = 32 if self.float32_scales else 8 * min(spec.scale_dtype.itemsize, 2)
        total = rows * columns * spec.bits
        if spec.super_block:
            blocks = rows * -(-columns // spec.super_block)
            kinds = 1 if spec.symmetric else 2  # scales, and minima
            return total + kinds * (groups * spec.scale_bits + blocks * number)
        if spec.scale_dtype == torch.float8_e4m3fn:
            total += 32  # what all its scales are divided by
        if self.static_inputs:
            total += max(number, 32 if spec.scale_dtype == torch.float8_e4m3fn else 0)
        if spec.scale_dtype == torch.uint8:
            total += 32 * -(-groups // 256)  # nested_absmax of bitsandbytes
        zero = spec.bits if self.middle_zeros or not spec.symmetric else 0
        return total + groups * (number + zero)

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

    def open_file(self, file: Path) -> FileTensors:
        """Look at a file without reading its tensors; of formats that have one.

        Raises:
            ValueError: it is damaged, or holds codes that no format has.
            NotImplementedError: a file of a kind that is not read.
        """
        raise NotImplementedError(f"{type(self).__name__} reads a folder.")

    def check_file(self, file: Path) -> tuple[Facts, list[Problem]]:
        """Return what is known of a file, and what is wrong with it; of formats that have one."""
        raise NotImplementedError(f"{type(self).__name__} reads a folder.")

    def check_section(self, config: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield what is wrong in a ``quantization_config``, mlcalib's or another tool's."""
        yield from ()

    def stored_shape(self, name: str, shapes: Shapes) -> tuple[int, int] | None:
        """Return (out, in) of a linear, as far as the shapes of its tensors tell.

        Args:
            name: the linear.
            shapes: of the checkpoint's tensors.

        Returns:
            -1 in place of what they do not tell; None if they tell nothing.
        """
        return None

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return whether each reader should load a checkpoint; by default that is not known."""
        return cannot_tell(self.layout(facts.section))

    def reason_unpacked(self, config: Mapping[str, Any]) -> str | None:
        """Return why a checkpoint with this config does not run on packed weights; None if it does.

        By default whatever has codes does.
        """
        return None if self.codes is not None else "it keeps no codes"

    def input_rounding(
        self, name: str, tensors: Mapping[str, Tensor]
    ) -> Callable[[Tensor], Tensor] | None:
        """Return how the input of a linear is rounded while a model runs; None for not at all.

        Only of formats that ``dequantizes``; transformers rounds for the others.

        Args:
            name: the linear.
            tensors: those of the checkpoint, at least of this linear.
        """
        return None

    def tensors_decide(self, config: Mapping[str, Any]) -> bool:
        """Return whether only the tensors tell that ``unpack`` can read such a checkpoint."""
        return False

    def order(self, config: Mapping[str, Any]) -> "Order":
        """Return the order in which the solver visited channels, as far as the config tells."""
        return "natural"

    def left_out(self, config: Mapping[str, Any]) -> list[str]:
        """Return linears that the config lists as unquantized."""
        return []

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


MODELOPT = "hf_quant_config.json"
"""The file in which ModelOpt says how a checkpoint is quantized."""

formats: Registry[Format] = Registry("format", package="mlcalib.formats", group="mlcalib.formats")


def find_format(config: Mapping[str, Any]) -> Format | None:
    """Return the format that reads a ``quantization_config``; None for a layout without one.

    Raises:
        ValueError: it describes a variant that cannot be read.
    """
    method = str(config.get("quant_method"))
    if method not in formats.names():
        return None
    try:
        return formats.get(method).of_config(config)
    except NotImplementedError:
        return None


def stored_section(folder: Path, config: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the ``quantization_config`` of a checkpoint, and where it stands.

    Args:
        folder: in the Hugging Face layout.
        config: content of its config.json.

    Returns:
        None and "" for a checkpoint that is not quantized. Otherwise the section, and
        ``config.json``, or the file in which AutoGPTQ, AutoAWQ or ModelOpt left it. A section
        without ``quant_method`` has that of the format whose file it is.

    Raises:
        ValueError: the file holds no JSON object.
    """
    text = config.get("text_config")
    inside = text.get("quantization_config") if isinstance(text, dict) else None
    for section in (config.get("quantization_config"), config.get("compression_config"), inside):
        if section is not None:
            return section, "config.json"
    if (folder / MODELOPT).is_file():
        return {"quant_method": "modelopt", **read_json(folder / MODELOPT)}, MODELOPT
    for method in ("gptq", "awq"):  # quantize_config.json is AWQ's only where it says so
        for name in formats.get(method).config_files:
            if (folder / name).is_file():
                return {"quant_method": method, **read_json(folder / name)}, name
    return None, ""


def find_file(path: Path) -> tuple[Format, Path] | None:
    """Return the one file of a checkpoint and its format; None for a folder with a config.json.

    Args:
        path: the file, or a folder that holds it.

    Raises:
        ValueError: a folder with several files of a format; names them.
    """
    if (path / "config.json").is_file():
        return None
    for form in (formats.get(name)() for name in formats.names()):
        if form.file is None:
            continue
        suffix = Path(form.file).suffix
        files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
        files = [file for file in files if file.is_file() and file.suffix == suffix]
        if len(files) > 1:
            named = ", ".join(file.name for file in files)
            kind = suffix[1:].upper()
            raise ValueError(
                f"{path} has {len(files)} {kind} files, {named}; give the one that is meant"
            )
        if files:
            return form, files[0]
    return None
