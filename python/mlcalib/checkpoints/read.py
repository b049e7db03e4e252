"""Quantized linears, read back from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError, named
from mlcalib.common.safetensors_read import read_json, validate_folder
from mlcalib.formats import FileTensors, Format, as_written, find_file, formats, stored_section


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A quantized checkpoint on disk; tensors are read one at a time, when they are asked for.

    Attributes:
        files: tensor → the file that has it.
        config: content of config.json.
        format: what reads it.
        linears: quantized linear → names of its tensors, a bias among them.
        specs: quantized linear → its grid.
        dtype: the model's.
    """

    files: dict[str, Path]
    config: dict[str, Any]
    format: Format
    linears: dict[str, list[str]]
    specs: dict[str, GridSpec]
    dtype: torch.dtype

    @property
    def section(self) -> dict[str, Any]:
        """The ``quantization_config``."""
        section: dict[str, Any] = self.config["quantization_config"]
        return section

    @property
    def others(self) -> list[str]:
        """The tensors that are no codes nor belong to some."""
        packed = {
            tensor
            for tensors in self.linears.values()
            for tensor in tensors
            if not tensor.endswith(".bias")
        }
        return [tensor for tensor in self.files if tensor not in packed]

    @property
    def packable(self) -> dict[str, list[str]]:
        """The ``linears`` that a product of packed weights runs: none in super-blocks."""
        return {
            name: tensors
            for name, tensors in self.linears.items()
            if not self.specs[name].super_block
        }

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def linear(self, name: str) -> QuantizedLinear:
        """Read a quantized linear.

        Raises:
            ValueError: its tensors are not as the config describes them.
        """
        tensors = {tensor: self.tensor(tensor) for tensor in self.linears[name]}
        with named(str(self.files[self.linears[name][0]])):
            return self.format.unpack(name, tensors, self.specs[name])


@dataclass(frozen=True, eq=False)
class FileCheckpoint(Checkpoint):
    """A checkpoint of a format that has one file, such as GGUF; tensors by transformers' names.

    Attributes:
        contents: the file.
    """

    contents: FileTensors

    def tensor(self, name: str) -> Tensor:
        """Read a tensor; of a quantized linear, its blocks, as the file holds them."""
        linear = name.removesuffix(".weight") in self.linears and name.endswith(".weight")
        with named(str(self.files[name])):
            return self.contents.blocks(name) if linear else self.contents.tensor(name)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Look at a checkpoint of mlcalib's or another tool's, without reading its tensors.

    Args:
        folder: in the Hugging Face layout, or with a GGUF file; or a GGUF file.

    Raises:
        CannotReadError: a variant of a format that is not read.
        ValueError: the folder is invalid, not quantized, or its config does not describe it.
        NotImplementedError: its format keeps no codes; a GGUF file of an unknown architecture.
    """
    folder = Path(folder)
    if (found := find_file(folder)) is not None:
        return _open_file(*found)
    files = validate_folder(folder)
    config = read_json(folder / "config.json")
    section, _ = stored_section(folder, config)
    if not isinstance(section, dict):
        raise ValueError(f"{folder}/config.json has no quantization_config: nothing to read back")
    config = {**config, "quantization_config": section}
    with as_written(folder):
        form = formats.get(str(section.get("quant_method"))).of_config(section)
        dtype = _config_dtype(folder, config)
        linears = linears_with(files, f".{form.codes}")
        specs = form.read_specs(section, linears, dtype)
    return Checkpoint(files, config, form, linears, specs, dtype)


def _open_file(form: Format, file: Path) -> FileCheckpoint:
    contents = form.open_file(file)
    if not contents.specs:
        raise ValueError(f"{file} has no quantized linears: nothing to read back")
    files = dict.fromkeys(contents.tensors, file)
    owned = linears_with(files, f".{form.codes}")
    linears = {name: owned[name] for name in contents.specs}
    config = {**contents.config.to_dict(), "dtype": str(contents.dtype).removeprefix("torch.")}
    config["quantization_config"] = {}
    return FileCheckpoint(
        files, config, form, linears, contents.specs, contents.dtype, contents=contents
    )


def load_quantized(folder: str | Path) -> dict[str, QuantizedLinear]:
    """Read back the quantized linears of a checkpoint, by name.

    Args:
        folder: a folder that ``save_checkpoint`` wrote, or another tool's in the same format.

    Raises:
        ValueError: the folder is invalid, not quantized, or not as its config describes.
        NotImplementedError: its format keeps no codes.
    """
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.linear(name) for name in checkpoint.linears}


def _config_dtype(folder: Path, config: Mapping[str, Any]) -> torch.dtype:
    """Return the model's dtype; transformers before 5 called it torch_dtype."""
    name = config.get("dtype", config.get("torch_dtype"))
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(name, str) and name in dtypes:
        return dtypes[name]
    known = getattr(torch, str(name), None)
    floats = name is None or (isinstance(known, torch.dtype) and known.is_floating_point)
    kind = CannotReadError if floats else ValueError
    raise kind(f"{folder}/config.json has dtype {name!r}; expected {', '.join(dtypes)}")


def linears_with(files: Mapping[str, Path], suffix: str) -> dict[str, list[str]]:
    """Return linears that have a tensor with this suffix, and the names of all their tensors.

    They own ``NAME.*``, and ``NAME.weight.*``, as bitsandbytes calls what belongs to a weight.
    """
    owned: dict[str, list[str]] = {
        tensor.removesuffix(suffix): [] for tensor in files if tensor.endswith(suffix)
    }
    for tensor in files:
        name = (
            tensor.partition(".weight.")[0] if ".weight." in tensor else tensor.rpartition(".")[0]
        )
        if name in owned:
            owned[name].append(tensor)
    return owned
