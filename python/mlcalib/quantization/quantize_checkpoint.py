"""From a model's files to a checkpoint's files, a block at a time."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.files import check_output, full_path, locked, parts_folder, remove_partial
from mlcalib.common.safetensors_read import read_json
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.device import choose_device
from mlcalib.models.loading import load_tokenizer
from mlcalib.quantization.block_files import BlockFiles
from mlcalib.quantization.block_pass import Propagate, run_pass
from mlcalib.quantization.finish import finish, finish_record
from mlcalib.quantization.hidden_states import HiddenStatesOnDisk
from mlcalib.quantization.job import QuantizationJob
from mlcalib.quantization.manifest import claim, machine, recipe_inputs
from mlcalib.quantization.model_files import ModelFiles
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.propagation import mixture_of
from mlcalib.quantization.recipe import check_method, make_recipe
from mlcalib.quantization.sink import FileSink
from mlcalib.quantization.text_check import check_text
from mlcalib.quantization.variant import Variant


def quantize_checkpoint(  # noqa: PLR0913 - what a quantization is made of
    model: str | Path,
    out: str | Path,
    calibration: CalibrationSet | Callable[[], CalibrationSet] | None = None,
    *,
    method: str = "gptq",
    propagate: Propagate = "quantized",
    format: str = "compressed-tensors",  # noqa: A002
    dtype: str = "auto",
    device: str = "auto",
    hidden_states: Literal["memory", "disk"] = "memory",
    progress: bool = True,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize a model and write its checkpoint, with one block in memory at a time.

    A run that is killed goes on where it stopped when it is called again with the same arguments;
    until it is finished, its blocks lie in the folder ``.NAME.parts`` beside ``out`` (where that
    is a mount point, in ``.parts`` inside). The
    checkpoint is the same, bit for bit, as that of a run nobody disturbed.

    Args:
        model: a folder with safetensors, a hub name, or a GGUF file (which is held in memory).
        out: the folder to write; must not exist.
        calibration: see ``mlcalib.calibration``; None for methods that need none. A function that
            makes it is called when all else has been checked.
        method: see ``mlcalib.quantize``.
        propagate: see ``mlcalib.quantize``.
        format: see ``mlcalib.quantize``.
        dtype: see ``mlcalib.quantize``.
        device: see ``mlcalib.quantize``.
        hidden_states: where the text lives between two blocks: ``memory``, or ``disk``, from where
            a killed run goes on at once; otherwise it takes the text through the finished blocks.
        progress: show a bar.
        skip: see ``mlcalib.quantize``.
        overrides: see ``mlcalib.quantize``.
        options: of the quantizer, see ``mlcalib.quantize``.

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
    place = choose_device(device)
    out = full_path(out)
    folder = parts_folder(out)
    if not folder.is_dir():
        check_output(out)
    stopwatch = Stopwatch()
    with stopwatch.timed("load"):
        source = open_source(model, dtype)
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
    text = calibration() if callable(calibration) else calibration
    if text is not None:
        check_text(source.model, text, tokenizer)
    with stopwatch.timed("load"):
        source = source.ready()
    with locked(folder):
        files = ModelFiles(source.name, folder)
        called = {"model": files.identities()}
        inputs = machine(place) | called | recipe_inputs(recipe, text)
        if claim(folder, f"The quantization to {out}", inputs):
            remove_partial(out)
            if (out / "mlcalib.json").is_file():  # it was killed when all was written
                shutil.rmtree(folder)
                return read_json(out / "mlcalib.json")
        mixture = {} if text is None else mixture_of(text)
        blocks = BlockFiles(folder / "blocks")
        sink = FileSink(blocks, source.adapter, recipe.checkpoint_format, recipe.specs)
        job = QuantizationJob(Variant(recipe.quantizer, recipe.exceptions, mixture), sink)
        with files.hashed(to_the_end=False):
            run_pass(
                source,
                [job],
                text,
                propagate=propagate,
                hidden=HiddenStatesOnDisk(folder / "hidden") if hidden_states == "disk" else None,
                stopwatch=stopwatch,
                description="quantizing" if progress else None,
                device=place,
            )
        seconds = stopwatch.seconds | job.stopwatch.seconds
        record = finish_record(source, sink, recipe.description, text, seconds)
        finish(source, sink, recipe.specs, recipe.quantizer.order, tokenizer, out, record)
        shutil.rmtree(folder)
    return record
