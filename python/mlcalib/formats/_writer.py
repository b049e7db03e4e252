"""Checkpoint folders, written whole or not at all."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.files import atomic_folder
from mlcalib.formats.base import Format
from mlcalib.safetensors_files import INDEX

if TYPE_CHECKING:
    from mlcalib._core import Order  # the stub knows it, the compiled module does not


def save_checkpoint(  # noqa: PLR0913 - what a checkpoint is made of
    model: Any,
    tokenizer: Any,
    out: str | Path,
    checkpoint_format: Format,
    quantized: Mapping[str, QuantizedLinear],
    metadata: Mapping[str, Any],
    *,
    order: "Order" = "natural",
    saved_names: Mapping[str, str] = MappingProxyType({}),
    card: str | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a Hugging Face folder in which quantized linears replace the model's own.

    The folder holds config.json, generation_config.json, the weights in one or several safetensors
    files, the tokenizer with its chat template, and mlcalib.json. Everything but the quantized
    weights is written as the model holds it, under the names the model gives it; a tied lm_head is
    not written, its config ties it again. The model is not modified, and its config's own
    ``quantization_config`` (of a model that was loaded from GGUF) is left behind.

    Args:
        model: a transformers ``PreTrainedModel``.
        tokenizer: its tokenizer.
        out: the folder, as for ``check_output``.
        checkpoint_format: how quantized linears are held.
        quantized: by module name; the scale dtype of their grids is the format's.
        metadata: content of mlcalib.json; JSON types, finite numbers.
        order: the order in which the solver visited channels.
        saved_names: part of a name in the model → what the family's checkpoints call it.
        card: the model card, README.md; None for none.
        max_shard_size: of a safetensors file, in bytes or as "5GB"; one larger tensor still fits.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written.
        ValueError: a linear does not belong to the model, is tied, or does not fit the format.
    """
    specs = _specs(quantized, checkpoint_format.scale_dtype(model.dtype), model.dtype)
    shapes = {name: (len(q.codes), q.codes.shape[1]) for name, q in quantized.items()}
    checkpoint_format.check(specs, shapes)
    ignore = [
        _saved_name(name, saved_names)
        for name, module in model.named_modules()
        if _is_linear(module) and name not in quantized
    ]
    section = checkpoint_format.quantization_config(specs, order, ignore)
    described = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_folder(out) as folder:
        if checkpoint_format.file is not None:
            _save_file(model, tokenizer, folder, checkpoint_format, quantized)
            _save_records(folder, described, card)
            return
        _save_config(model, section, folder)
        if checkpoint_format.config_file is not None:
            text = json.dumps(section, indent=2) + "\n"
            (folder / checkpoint_format.config_file).write_text(text, encoding="utf-8")
        tokenizer.save_pretrained(folder)
        _save_records(folder, described, card)
        tensors = {
            _saved_name(name, saved_names): tensor
            for name, tensor in _tensors(model, checkpoint_format, quantized).items()
        }
        _save_tensors(tensors, folder, max_shard_size)


def _save_records(folder: Path, described: str, card: str | None) -> None:
    """Write mlcalib.json and the model card."""
    (folder / "mlcalib.json").write_text(described, encoding="utf-8")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _save_file(
    model: Any,
    tokenizer: Any,
    folder: Path,
    checkpoint_format: Format,
    quantized: Mapping[str, QuantizedLinear],
) -> None:
    """Write the file of a format that has one; its tensors have the names that the model gives."""
    config = copy.deepcopy(model.config)
    contents = (
        (name, quantized[name])
        if (name := key.removesuffix(".weight")) in quantized
        else (key, value)
        for key, value in model.state_dict().items()
        if key not in _tied(model)
    )
    architecture = type(model).__name__
    checkpoint_format.write_file(folder, config, architecture, tokenizer, contents)


def _tied(model: Any) -> set[str]:
    """Return the names of weights that are another's."""
    state = model.state_dict()
    return {
        target
        for target, source in model.all_tied_weights_keys.items()
        if target in state and state[target].data_ptr() == state[source].data_ptr()
    }


def _saved_name(name: str, saved_names: Mapping[str, str]) -> str:
    for part, saved in saved_names.items():
        name = name.replace(part, saved)
    return name


def _is_linear(module: nn.Module) -> bool:
    """Return whether a reader may see a linear: a router is one in vLLM, if not in transformers."""
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.dim() == 2
    return matrix and not isinstance(module, nn.Embedding)


def _specs(
    quantized: Mapping[str, QuantizedLinear], scale_dtype: torch.dtype, model_dtype: torch.dtype
) -> dict[str, GridSpec]:
    """Return the grid spec of each linear, whose scales are those of the checkpoint."""
    if not quantized:
        raise ValueError("no linear is quantized; a checkpoint needs one or more")
    specs = {name: linear.grid.spec for name, linear in quantized.items()}
    for name, spec in specs.items():
        if spec.scale_dtype != scale_dtype:
            raise ValueError(
                f"{name}: the grid has scale_dtype {spec.scale_dtype}, but a model in "
                f"{model_dtype} is saved with {scale_dtype}; quantize with that"
            )
    return specs


def _save_config(model: Any, section: dict[str, Any] | None, folder: Path) -> None:
    """Write config.json and generation_config.json from copies."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if section is not None:
        config.quantization_config = section
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        copy.deepcopy(model.generation_config).save_pretrained(folder)


def _tensors(
    model: Any, checkpoint_format: Format, quantized: Mapping[str, QuantizedLinear]
) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint, on the CPU, in the model's order."""
    state: dict[str, Tensor] = model.state_dict()
    if missing := [name for name in quantized if f"{name}.weight" not in state]:
        raise ValueError(f"the model has no weight for {', '.join(missing)}")
    tied = _tied(model)
    tensors: dict[str, Tensor] = {}
    shared = tied | {model.all_tied_weights_keys[target] for target in tied}
    for key, value in state.items():
        name = key.removesuffix(".weight")
        if name == key or name not in quantized:
            if key not in tied:
                tensors[key] = value
            continue
        if key in shared:
            raise ValueError(f"{name} is tied to another weight; untie it or leave it unquantized")
        if (codes := quantized[name].codes).shape != value.shape:
            raise ValueError(
                f"{name}: codes {list(codes.shape)} cannot replace a weight {list(value.shape)}"
            )
        tensors |= checkpoint_format.pack(name, quantized[name])
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _save_tensors(tensors: dict[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """Write model.safetensors, or shards and their index."""
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        # transformers asks for the format key.
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
