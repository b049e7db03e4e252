"""Finished blocks put together into a checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mlcalib._core import GridSpec
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints import quantization_section, write_checkpoint, write_file_checkpoint
from mlcalib.checkpoints.card import model_card
from mlcalib.checkpoints.record import checkpoint_record, resources
from mlcalib.checkpoints.source_files import with_source_card
from mlcalib.common import compat
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_write import Piece
from mlcalib.models.device import device_name
from mlcalib.quantization.sink import Content, Sink
from mlcalib.quantization.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mlcalib._core import Order


def merged(source: Source, sink: Sink, *keys: str) -> list[dict[str, Any]]:
    """Return entries of the records of all blocks, each put together.

    Args:
        source: the model.
        sink: all of its blocks are finished.
        keys: of a block's record: ``layers``, ``scales``, ``expert_tokens``, ``calibration`` or
            ``heldout``.
    """
    found: dict[str, dict[str, Any]] = {key: {} for key in keys}
    for name, _ in source.adapter.named_blocks(source.model):
        record = sink.record(name)
        for key in keys:
            found[key] |= record[key]
    return [found[key] for key in keys]


def cache_record(source: Source, sink: Sink) -> dict[str, Any]:
    """Return attention module → ranges of its keys and values; empty where none were asked for."""
    found: dict[str, Any] = {}
    for name, _ in source.adapter.named_blocks(source.model):
        found |= sink.record(name).get("kv_cache", {})
    return found


def finish_record(
    source: Source,
    sink: Sink,
    description: Mapping[str, Any],
    calibration: CalibrationSet | None,
    seconds: Mapping[str, float],
    device: torch.device,
) -> dict[str, Any]:
    """Return what ``mlcalib.json`` records of a checkpoint whose blocks a device has finished."""
    layers, scales, expert_tokens = merged(source, sink, "layers", "scales", "expert_tokens")
    blocks = [name for name, _ in source.adapter.named_blocks(source.model)]
    made_with = {name: sink.record(name).get("made_with", resources(Ranks())) for name in blocks}
    usual = all(each == resources(Ranks()) for each in made_with.values())
    return checkpoint_record(
        description,
        calibration,
        layers,
        scales,
        expert_tokens,
        seconds,
        device_name(device),
        None if usual else made_with,
        cache_record(source, sink),
    )


def finish(
    source: Source,
    sink: Sink,
    specs: Mapping[str, GridSpec],
    order: "Order",
    tokenizer: "PreTrainedTokenizerBase",
    out: str | Path,
    record: Mapping[str, Any],
    *,
    save_tokenizer: bool = False,
) -> None:
    """Write the checkpoint whose blocks are finished; all of it or nothing.

    Args:
        source: gives the config, the files and all tensors outside of blocks.
        sink: gives the blocks.
        specs: linear (its name in the model) → its grid.
        order: the order in which the solver visited channels.
        tokenizer: of the model; the source's files of it are copied.
        out: the folder, as for ``check_output``.
        record: content of ``mlcalib.json``.
        save_tokenizer: save the tokenizer over the source's.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written.
        ValueError: the format cannot hold these grids.
    """
    form, model = sink.checkpoint_format, source.model
    loaded_by = compat.auto_class(type(model).__name__, model.config.model_type)
    card = model_card(record, loaded_by)
    if source.folder is not None:
        card = with_source_card(card, source.folder)
    if form.file is not None:
        contents = _contents(source, sink)
        write_file_checkpoint(model, tokenizer, out, form, contents, record, card=card)
        return
    write_checkpoint(
        model,
        tokenizer,
        out,
        quantization_section(
            model,
            form,
            specs,
            order,
            source.adapter.saved,
            kv_cache=bool(record.get("kv_cache")),
        ),
        _pieces(source, sink),
        record,
        config_file=form.config_file,
        card=card,
        source=source.folder,
        save_tokenizer=save_tokenizer,
    )


def _pieces(source: Source, sink: Sink) -> dict[str, Piece]:
    """Return all tensors of the checkpoint, in the model's order."""
    outside = source.outside()
    found: dict[str, Piece] = {}
    for name, is_block in _in_order(source):
        if is_block:
            found |= sink.pieces(name)
        elif (saved := source.adapter.saved(name)) in outside:
            found[saved] = outside[saved]
    return found | outside | source.extra_pieces()


def _contents(source: Source, sink: Sink) -> Iterator[Content]:
    """Yield all tensors by their names in the model, and quantized linears by their own."""
    for name, is_block in _in_order(source):
        if is_block:
            yield from sink.contents(name)
        else:
            yield name, source.tensor(name)


def _in_order(source: Source) -> Iterator[tuple[str, bool]]:
    """Yield the tensors outside of blocks and the blocks, in the model's order; which it is."""
    outside = set(source.outside_names())
    left = [name for name, _ in source.adapter.named_blocks(source.model)]
    for key in source.model.state_dict():
        if left and key.startswith(f"{left[0]}."):
            yield left.pop(0), True
        elif key in outside:
            yield key, False
