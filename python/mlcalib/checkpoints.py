"""From a model's files to a checkpoint's files, a block at a time."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.files import check_output, locked, remove_partial
from mlcalib.flow import mixture_of
from mlcalib.formats import quantization_section, write_checkpoint, write_file_checkpoint
from mlcalib.hidden_states import HiddenStatesOnDisk
from mlcalib.jobs import Job, finished_linear
from mlcalib.layer_names import saved_name
from mlcalib.model_card import model_card
from mlcalib.models.loading import load_tokenizer
from mlcalib.parts import Parts, claim
from mlcalib.passes import Propagate, run_pass
from mlcalib.recipes import Recipe, check_method, make_recipe
from mlcalib.records import checkpoint_record
from mlcalib.safetensors_files import read_json
from mlcalib.safetensors_writing import Piece
from mlcalib.sources import Source, open_source, outside_names
from mlcalib.stopwatch import Stopwatch
from mlcalib.variants import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def quantize_checkpoint(  # noqa: PLR0913 - what a quantization is made of
    model: str | Path,
    out: str | Path,
    calibration: CalibrationSet | None = None,
    *,
    method: str = "gptq",
    propagate: Propagate = "quantized",
    format: str = "compressed-tensors",  # noqa: A002
    dtype: str = "auto",
    hidden_states: Literal["memory", "disk"] = "memory",
    progress: bool = True,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize a model and write its checkpoint, with one block in memory at a time.

    A run that is killed goes on where it stopped when it is called again with the same arguments;
    until it is finished, its blocks lie in the folder ``.NAME.parts`` beside ``out``. The
    checkpoint is the same, bit for bit, as that of a run nobody disturbed.

    Args:
        model: a folder with safetensors, a hub name, or a GGUF file (which is held in memory).
        out: the folder to write; must not exist.
        calibration: see ``mlcalib.calibration``; None for methods that need none.
        method: see ``mlcalib.quantize``, as all that is not named here.
        propagate: the same.
        format: the same.
        dtype: the same.
        hidden_states: where the text lives between two blocks: ``memory``, or ``disk``, from where
            a killed run goes on at once; otherwise it takes the text through the finished blocks.
        progress: the same.
        skip: the same.
        overrides: the same.
        options: the same.

    Returns:
        What ``mlcalib.json`` records.

    Raises:
        FileExistsError: ``out`` exists.
        OSError: the disk is full; what is finished is kept.
        ValueError: see ``mlcalib.quantize``; or an unfinished run that began with other inputs.
        NotImplementedError, torch.linalg.LinAlgError: see ``mlcalib.quantize``.
    """
    check_method(method, propagate, calibrated=calibration is not None, options=options)
    if hidden_states not in ("memory", "disk"):
        raise ValueError(f"hidden_states is '{hidden_states}', expected 'memory' or 'disk'.")
    out = Path(out).resolve()
    folder = out.with_name(f".{out.name}.parts")
    if not folder.is_dir():
        check_output(out)
    stopwatch = Stopwatch()
    with stopwatch.timed("load"):
        source = open_source(str(model), dtype)
        tokenizer = load_tokenizer(str(model))
    recipe = make_recipe(
        source.model,
        source.adapter,
        tokenizer,
        name=source.name,
        dtype=source.dtype,
        method=method,
        propagate=propagate if calibration is not None else None,
        format=format,
        skip=skip,
        overrides=overrides,
        options=options,
    )
    with locked(folder):
        inputs = machine() | {"model": source.fingerprint} | recipe_inputs(recipe, calibration)
        if claim(folder, f"The quantization to {out}", inputs):
            remove_partial(out)
            if (out / "mlcalib.json").is_file():  # it was killed when all was written
                shutil.rmtree(folder)
                return read_json(out / "mlcalib.json")
        variant = Variant(
            recipe.quantizer,
            recipe.exceptions,
            {} if calibration is None else mixture_of(calibration),
        )
        job = Job(variant, recipe.checkpoint_format, recipe.specs, Parts(folder / "blocks"))
        run_pass(
            source,
            [job],
            calibration,
            propagate=propagate,
            hidden=HiddenStatesOnDisk(folder / "hidden") if hidden_states == "disk" else None,
            stopwatch=stopwatch,
            progress=progress,
        )
        seconds = stopwatch.seconds | job.stopwatch.seconds
        record = finish(job, source, tokenizer, out, recipe, calibration, seconds)
        shutil.rmtree(folder)
    return record


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


def recipe_inputs(recipe: Recipe, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Return what decides a checkpoint beside the model and the machine; JSON types."""
    text = None
    if calibration is not None:
        text = {"tokens": calibration.tokens, "sha256": calibration.fingerprint}
    return {"recipe": recipe.description, "calibration": text}


def machine() -> dict[str, Any]:
    """Return what else decides the last bits of a result; JSON types."""
    return {
        "mlcalib": _core.build_info()["version"],
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "instruction set": _core.isa(),
        "threads": torch.get_num_threads(),
    }


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
