"""``mlcalib.convert``: codes from one checkpoint format into another, as they are."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.checkpoints import Checkpoint, open_checkpoint, save_tensors
from mlcalib.checkpoints.card import CARD, converted_card, tuned_card
from mlcalib.checkpoints.config_check import known_family
from mlcalib.checkpoints.expected import check_model
from mlcalib.checkpoints.held import held_dtype
from mlcalib.checkpoints.source_files import changed_config, copy_files, save_json
from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common import compat
from mlcalib.common.files import atomic_folder, check_output
from mlcalib.common.safetensors_read import INDEX, read_json
from mlcalib.common.safetensors_write import file_pieces, tensor_piece, write_checkpoint_files
from mlcalib.formats import Format, find_file, formats, with_dtype
from mlcalib.models.loading import load_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(source: str | Path, out: str | Path, format: str, *, dtype: str = "auto") -> None:  # noqa: A002
    """Write a quantized checkpoint in another format without quantizing again.

    Codes, scales and zero points are the same after it; or with ``dense``, which keeps none, the
    weights are what readers compute from them, for a reader that has no kernel for the codes. An
    asymmetric checkpoint whose zero points are all mid-range becomes a symmetric one. Tensors are
    read and written one after another.

    Args:
        source: a folder with a quantized checkpoint of mlcalib or another tool, or a GGUF file.
        out: a folder that does not exist.
        format: ``compressed-tensors``, ``gptq``, ``gptq-v2``, ``awq``, ``gguf`` or
            ``dense``.
        dtype: of everything that is not quantized: ``auto`` (as it is), ``float32``, ``bfloat16``
            or ``float16``. Scales must be exact in what the format then holds them in.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the source is damaged or not quantized; the format cannot hold its grids, or
            its scales exactly.
        NotImplementedError: GGUF cannot hold the model.
    """
    form = formats.get(format)()
    check_output(out)
    checkpoint = open_checkpoint(source)
    if dtype not in ("auto", *_DTYPES):
        raise ValueError(f"dtype is '{dtype}', expected one of: auto, {', '.join(_DTYPES)}")
    model_dtype = checkpoint.dtype if dtype == "auto" else _DTYPES[dtype]
    found = find_file(Path(source))
    if found is None and known_family(checkpoint.config):
        check_model(StoredWeights(Path(source), model_dtype))
    cached = checkpoint.section.get("kv_cache_scheme")
    if cached and not form.kv_cache:
        raise ValueError(
            f"{source} has scales of keys and values, for which {format} has no place; give a "
            "format of compressed-tensors."
        )
    specs = _specs(checkpoint, form, model_dtype)
    form.check(specs, {name: _shape(checkpoint, name) for name in specs})
    if form.file is not None:
        _convert_file(
            checkpoint, found[1] if found else Path(source), out, format, specs, model_dtype
        )
        return
    order = checkpoint.format.order(checkpoint.section)
    section = form.quantization_config(specs, order, _ignore(checkpoint))
    if cached and section is not None:
        section["kv_cache_scheme"] = cached
    config = changed_config(checkpoint.config, section, model_dtype)
    with atomic_folder(out) as folder:
        if found is None:
            copy_files(Path(source), folder)
            _copy_card(Path(source), folder, format)
        else:
            load_tokenizer(str(found[1])).save_pretrained(folder)
        _copy_record(Path(source) if found is None else found[1].parent, folder, format)
        save_json(folder / "config.json", config)
        if form.config_file is not None:
            save_json(folder / form.config_file, section)
        save_tensors(_packed(checkpoint, form, specs, model_dtype), folder)


def rewrite(
    source: str | Path, out: str | Path, scales: Mapping[str, Tensor], tuned: Mapping[str, Any]
) -> None:
    """Write a quantized checkpoint again with other scales; all of it or nothing.

    Every other tensor and file is copied byte for byte, but for ``mlcalib.json``, if there is one,
    and the model card, which get what was done.

    Args:
        source: a folder with a quantized checkpoint.
        out: a folder that does not exist.
        scales: linear (its name in the checkpoint) → [out, groups] float32, exact in the dtype of
            its grid.
        tuned: what was done, as the list ``tuned`` of ``mlcalib.json`` has it.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the source is damaged or not quantized, or does not hold such scales.
    """
    checkpoint, source = open_checkpoint(source), Path(source)
    weights = {file.name for file in checkpoint.files.values()} | {INDEX}
    with atomic_folder(out) as folder:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in weights:
                shutil.copyfile(path, folder / path.name)
        pieces = {
            name: piece
            for file in sorted({*checkpoint.files.values()})
            for name, piece in file_pieces(file).items()
        }
        for name, scale in scales.items():
            for tensor, changed in _rescaled(checkpoint, name, scale).items():
                pieces[tensor] = tensor_piece(changed)
        write_checkpoint_files(folder, pieces, "5GB")
        record = folder / "mlcalib.json"
        if record.is_file():
            content = read_json(record)
            content["tuned"] = [*content.get("tuned", []), dict(tuned)]
            save_json(record, content)
        card = folder / CARD
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        card.write_text(tuned_card(text, tuned), encoding="utf-8")


def _rescaled(checkpoint: Checkpoint, name: str, scale: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a linear that hold its scales, with other scales.

    Raises:
        ValueError: with them the linear is another one than it is to be.
    """
    old = checkpoint.linear(name)
    grid = Grid(scale, old.grid.zero, old.grid.spec)
    new = old.replaced(grid=grid)
    stored = {tensor: checkpoint.tensor(tensor) for tensor in checkpoint.linears[name]}
    changed = {
        tensor: value
        for tensor, value in checkpoint.format.pack(name, new).items()
        if value.is_floating_point()
    }
    back = checkpoint.format.unpack(name, {**stored, **changed}, old.grid.spec)
    same = (
        torch.equal(back.codes, new.codes),
        torch.equal(back.grid.scale, scale),
        torch.equal(back.grid.zero, old.grid.zero),
        back.input_bound == old.input_bound,
    )
    if not all(same) or any(stored[each].shape != to.shape for each, to in changed.items()):
        raise ValueError(f"{name}: the checkpoint does not hold these scales beside its codes")
    return changed


def _specs(checkpoint: Checkpoint, form: Format, dtype: torch.dtype) -> dict[str, GridSpec]:
    """Return the grids as the other format holds them, after a look at all scales and zeros."""
    form.check_numbers(checkpoint.specs)
    if form.static_inputs and not checkpoint.format.static_inputs:
        raise ValueError(
            f"{type(form).__name__} stores ranges of activations, which this checkpoint does not "
            "have: they come from calibration text. Quantize the model again with this format."
        )
    found, centred = {}, True
    for name in checkpoint.linears:
        grid = checkpoint.linear(name).grid
        found[name] = (grid.spec, held_dtype(name, grid, form, dtype))
        centred &= not grid.spec.has_minima and bool((grid.zero == 1 << (grid.spec.bits - 1)).all())
    return {
        name: with_dtype(spec, scale, symmetric=spec.symmetric or centred)
        for name, (spec, scale) in found.items()
    }


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    rows, columns = checkpoint.linear(name).codes.shape
    return rows, columns


def _linear(checkpoint: Checkpoint, name: str, spec: GridSpec) -> QuantizedLinear:
    linear = checkpoint.linear(name)
    return linear.replaced(grid=Grid(linear.grid.scale, linear.grid.zero, spec))


def _packed(
    checkpoint: Checkpoint, form: Format, specs: dict[str, GridSpec], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for name in checkpoint.others:
        yield name, _cast(checkpoint.tensor(name), dtype)
    for name, spec in specs.items():
        yield from form.pack(name, _linear(checkpoint, name, spec)).items()


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _convert_file(
    checkpoint: Checkpoint,
    source: Path,
    out: str | Path,
    format: str,  # noqa: A002
    specs: dict[str, GridSpec],
    dtype: torch.dtype,
) -> None:
    form = formats.get(format)()
    config = compat.config_from(checkpoint.config)
    tokenizer = load_tokenizer(str(source))
    (architecture,) = config.architectures or ["?"]
    form.check_model(config, architecture, tokenizer)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()

    def contents() -> Iterator[tuple[str, Tensor | QuantizedLinear]]:
        for name in checkpoint.others:
            if name not in tied:
                yield name, _cast(checkpoint.tensor(name), dtype)
        for name, spec in specs.items():
            yield name, _linear(checkpoint, name, spec)

    with atomic_folder(out) as folder:
        form.write_file(folder, config, architecture, tokenizer, contents())
        _copy_record(source if source.is_dir() else source.parent, folder, format)


def _ignore(checkpoint: Checkpoint) -> list[str]:
    """Return the linears that stay unquantized: matrices but embeddings, and a tied head."""
    ignored = checkpoint.format.left_out(checkpoint.section)
    for tensor in checkpoint.others:
        name = tensor.removesuffix(".weight")
        leaf = name.rpartition(".")[2]
        embeds = "embed" in leaf or leaf in ("wte", "wpe")
        if name != tensor and not embeds and checkpoint.tensor(tensor).dim() == 2:
            ignored.append(name)
    if "lm_head" not in checkpoint.linears:
        ignored.append("lm_head")
    return list(dict.fromkeys(ignored))


def _copy_card(source: Path, folder: Path, format: str) -> None:  # noqa: A002
    """Copy the model card; one that mlcalib wrote says how the new format is loaded."""
    if not (card := source / CARD).is_file():
        return
    content = card.read_bytes()
    record = source / "mlcalib.json"
    recipe = read_json(record).get("recipe") if record.is_file() else None
    if isinstance(recipe, dict) and recipe.get("format") in formats.names():
        text = content.decode(errors="replace")
        content = converted_card(text, recipe["format"], format).encode()
    (folder / CARD).write_bytes(content)


def _copy_record(source: Path, folder: Path, format: str) -> None:  # noqa: A002
    record = source / "mlcalib.json"
    if record.is_file():
        content = read_json(record)
        if isinstance(content.get("recipe"), dict):
            content["recipe"]["format"] = format
        save_json(folder / record.name, content)
