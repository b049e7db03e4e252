"""The files of finished blocks put together into a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints import quantization_section, write_checkpoint, write_file_checkpoint
from mlcalib.checkpoints.card import model_card
from mlcalib.checkpoints.record import checkpoint_record
from mlcalib.common.layer_names import saved_name
from mlcalib.common.safetensors_write import Piece
from mlcalib.quantization.block_files import Parts
from mlcalib.quantization.job import Job, finished_linear
from mlcalib.quantization.recipe import Recipe
from mlcalib.quantization.source import Source, outside_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def finish(
    job: Job,
    source: Source,
    tokenizer: "PreTrainedTokenizerBase",
    out: Path,
    recipe: Recipe,
    calibration: CalibrationSet | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write the checkpoint whose blocks are finished; return what ``mlcalib.json`` records."""
    adapter, model = source.adapter, source.model
    blocks = [name for name, _ in adapter.named_blocks(model)]
    parts: dict[str, dict[str, Any]] = {"layers": {}, "scales": {}, "expert_tokens": {}}
    for name in blocks:
        found = job.parts.record(name)
        for key in parts:
            parts[key] |= found[key]
    record = checkpoint_record(
        recipe.description,
        calibration,
        parts["layers"],
        parts["scales"],
        parts["expert_tokens"],
        seconds,
    )
    card = model_card(record)
    if job.checkpoint_format.file is not None:
        contents = _contents(source, job, blocks)
        write_file_checkpoint(
            model, tokenizer, out, job.checkpoint_format, contents, record, card=card
        )
        return record
    section = quantization_section(
        model, job.checkpoint_format, job.specs, recipe.quantizer.order, adapter.saved_names
    )
    write_checkpoint(
        model,
        tokenizer,
        out,
        section,
        _pieces(source, job.parts, blocks),
        record,
        config_file=job.checkpoint_format.config_file,
        card=card,
    )
    return record


def _pieces(source: Source, parts: Parts, blocks: Sequence[str]) -> dict[str, Piece]:
    """Return all tensors of the checkpoint, in the model's order."""
    outside = source.outside()
    found: dict[str, Piece] = {}
    left = list(blocks)
    for key in source.model.state_dict():
        if left and key.startswith(f"{left[0]}."):
            found |= parts.pieces(left.pop(0))
        elif key in outside:
            found[saved_name(key, source.adapter.saved_names)] = outside[key]
    return found


def _contents(
    source: Source, job: Job, blocks: Sequence[str]
) -> Iterator[tuple[str, Tensor | QuantizedLinear]]:
    """Yield all tensors by their names in the model, and quantized linears by their own."""
    outside = outside_names(source.model, source.adapter)
    left = list(blocks)
    for key in source.model.state_dict():
        if key in outside:
            yield key, source.tensor(key)
        elif left and key.startswith(f"{left[0]}."):
            block = left.pop(0)
            tensors = job.parts.tensors(block)
            for name in job.parts.record(block)["names"]:
                layer, _, kind = name.rpartition(".")
                if layer not in job.specs or kind == "bias":
                    yield name, tensors[name]
                elif kind == "codes":
                    yield layer, finished_linear(job, source.adapter, tensors, layer)
