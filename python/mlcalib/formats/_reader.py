"""Quantized linears, read back from a checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mlcalib._core import QuantizedLinear
from mlcalib.formats.base import formats
from mlcalib.safetensors_files import read_json, validate_folder


def load_quantized(folder: str | Path) -> dict[str, QuantizedLinear]:
    """Read back the quantized linears of a checkpoint, by name.

    Args:
        folder: a folder that ``save_checkpoint`` wrote, or another tool's in the same format.

    Raises:
        ValueError: the folder is invalid, not quantized, or not as its config describes.
        NotImplementedError: its format keeps no codes.
    """
    folder = Path(folder)
    files = validate_folder(folder)
    config = read_json(folder / "config.json")
    section = config.get("quantization_config")
    if not isinstance(section, dict):
        raise ValueError(f"{folder}/config.json has no quantization_config: nothing to read back")
    checkpoint_format = formats.get(str(section.get("quant_method"))).of_config(section)
    linears = dict(_linears(files, f".{checkpoint_format.codes}"))
    specs = checkpoint_format.read_specs(section, linears, _config_dtype(folder, config))
    quantized = {}
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted(set(files.values()))
        }
        for name, tensors in linears.items():
            loaded = {tensor: opened[files[tensor]].get_tensor(tensor) for tensor in tensors}
            quantized[name] = checkpoint_format.unpack(name, loaded, specs[name])
    return quantized


def _config_dtype(folder: Path, config: Mapping[str, Any]) -> torch.dtype:
    """Return the model's dtype; transformers before 5 called it torch_dtype."""
    name = config.get("dtype", config.get("torch_dtype"))
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"{folder}/config.json has dtype {name!r}; expected {', '.join(dtypes)}")
    return dtypes[name]


def _linears(files: Mapping[str, Path], suffix: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each linear that has codes and the names of its tensors."""
    tensors: dict[str, list[str]] = {}
    for tensor in files:
        tensors.setdefault(tensor.rpartition(".")[0], []).append(tensor)
    for name, owned in tensors.items():
        if name + suffix in owned:
            yield name, owned
