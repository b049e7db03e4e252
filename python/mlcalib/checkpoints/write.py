"""Checkpoint folders, written whole or not at all."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.checkpoints.source_files import config_of, copy_files, save_json
from mlcalib.common import compat
from mlcalib.common.files import atomic_folder
from mlcalib.common.safetensors_write import Piece, tensor_piece, write_checkpoint_files
from mlcalib.formats import KV_CACHE_SCHEME
from mlcalib.formats.base import Format

if TYPE_CHECKING:
    from mlcalib._core import Order


def save_checkpoint(  # noqa: PLR0913 - what a checkpoint is made of
    model: Any,
    tokenizer: Any,
    out: str | Path,
    checkpoint_format: Format,
    quantized: Mapping[str, QuantizedLinear],
    metadata: Mapping[str, Any],
    *,
    order: "Order" = "natural",
    saved: Callable[[str], str] = str,
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
        saved: gives what checkpoints call a tensor or a module of the model.
        card: the model card, README.md; None for none.
        max_shard_size: of a safetensors file, in bytes or as "5GB"; one larger tensor still fits.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written.
        ValueError: a linear does not belong to the model, is tied, or does not fit the format.
    """
    specs = _specs(quantized, checkpoint_format.scale_dtype(model.dtype), model.dtype)
    shapes = {name: (len(q.codes), q.codes.shape[1]) for name, q in quantized.items()}
    checkpoint_format.check_numbers(specs)
    checkpoint_format.check(specs, shapes)
    if checkpoint_format.file is not None:
        contents = (
            (name, quantized[name])
            if (name := key.removesuffix(".weight")) in quantized
            else (key, value)
            for key, value in model.state_dict().items()
            if key not in compat.held_ties(model)
        )
        write_file_checkpoint(
            model, tokenizer, out, checkpoint_format, contents, metadata, card=card
        )
        return
    pieces = {
        saved(name): tensor_piece(tensor)
        for name, tensor in _tensors(model, checkpoint_format, quantized).items()
    }
    write_checkpoint(
        model,
        tokenizer,
        out,
        quantization_section(model, checkpoint_format, specs, order, saved),
        pieces,
        metadata,
        config_file=checkpoint_format.config_file,
        card=card,
        max_shard_size=max_shard_size,
    )


def write_file_checkpoint(
    model: Any,
    tokenizer: Any,
    out: str | Path,
    checkpoint_format: Format,
    contents: Iterable[tuple[str, Tensor | QuantizedLinear]],
    metadata: Mapping[str, Any],
    *,
    card: str | None = None,
) -> None:
    """Write the folder of a format that has one file of its own; all of it or nothing.

    Args:
        model: gives the config; needs no weights.
        tokenizer: its tokenizer.
        out: the folder, as for ``check_output``.
        checkpoint_format: writes the file.
        contents: tensors by their names in the model, quantized linears by their own.
        metadata: content of mlcalib.json; JSON types, finite numbers.
        card: the model card, README.md; None for none.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written.
    """
    described = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_folder(out) as folder:
        config, architecture = copy.deepcopy(model.config), type(model).__name__
        checkpoint_format.write_file(folder, config, architecture, tokenizer, contents)
        _save_records(folder, described, card)


def quantization_section(
    model: Any,
    checkpoint_format: Format,
    specs: Mapping[str, GridSpec],
    order: "Order",
    saved: Callable[[str], str],
    *,
    kv_cache: bool = False,
) -> dict[str, Any] | None:
    """Return the ``quantization_config`` of a model whose linears in ``specs`` are quantized.

    It names linears as the checkpoint does, and so do readers. With ``kv_cache`` the checkpoint has
    scales of keys and values.
    """
    ignore = [
        saved(name)
        for name, module in model.named_modules()
        if _is_linear(module) and name not in specs
    ]
    named = {saved(name): spec for name, spec in specs.items()}
    section = checkpoint_format.quantization_config(named, order, ignore)
    if kv_cache and section is not None:
        section["kv_cache_scheme"] = dict(KV_CACHE_SCHEME)
    return section


def write_checkpoint(  # noqa: PLR0913 - what a checkpoint is made of
    model: Any,
    tokenizer: Any,
    out: str | Path,
    section: dict[str, Any] | None,
    pieces: Mapping[str, Piece],
    metadata: Mapping[str, Any],
    *,
    config_file: str | None = None,
    card: str | None = None,
    max_shard_size: int | str = "5GB",
    source: Path | None = None,
    save_tokenizer: bool = True,
) -> None:
    """Write a Hugging Face folder; all of it or nothing.

    Args:
        model: gives config.json and generation_config.json; needs no weights.
        tokenizer: its tokenizer.
        out: the folder, as for ``check_output``.
        section: ``quantization_config`` of config.json, or None.
        pieces: the tensors, by their names in the checkpoint.
        metadata: content of mlcalib.json; JSON types, finite numbers.
        config_file: a file that repeats the section; None for none.
        card: the model card, README.md; None for none.
        max_shard_size: of a safetensors file, in bytes or as "5GB"; one larger tensor still fits.
        source: the folder of the model that was quantized, whose files are copied and whose
            config.json is extended; None where it was not in a folder.
        save_tokenizer: whether the tokenizer is saved over the source's; without a source it is.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written.
    """
    described = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_folder(out) as folder:
        write_checkpoint_files(folder, pieces, max_shard_size)
        if source is None:
            _save_config(model, section, folder)
        else:
            copy_files(source, folder)
            tied = compat.ties_embeddings(model.config)
            save_json(folder / "config.json", config_of(source, section, model.dtype, tied=tied))
        if source is None or save_tokenizer:
            _save_tokenizer(tokenizer, folder)
        if config_file is not None:
            text = json.dumps(section, indent=2) + "\n"
            (folder / config_file).write_text(text, encoding="utf-8")
        _save_records(folder, described, card)


def _save_records(folder: Path, described: str, card: str | None) -> None:
    """Write mlcalib.json and the model card."""
    (folder / "mlcalib.json").write_text(described, encoding="utf-8")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


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


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        if type(error) is not Exception:
            raise
        # What tokenizers (Rust) raises where the disk is full.
        raise OSError(f"cannot write the tokenizer to {folder}: {error}") from error


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
        # Not save_pretrained: some releases of transformers refuse what published models have.
        model.generation_config.to_json_file(folder / "generation_config.json")


def _tensors(
    model: Any, checkpoint_format: Format, quantized: Mapping[str, QuantizedLinear]
) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint, on the CPU, in the model's order."""
    state: dict[str, Tensor] = model.state_dict()
    if missing := [name for name in quantized if f"{name}.weight" not in state]:
        raise ValueError(f"the model has no weight for {', '.join(missing)}")
    tied = compat.held_ties(model)
    tensors: dict[str, Tensor] = {}
    shared = tied | {compat.tied_weights(model)[target] for target in tied}
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
