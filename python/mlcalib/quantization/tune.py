"""``mlcalib.tune`` and ``mlcalib.tune_checkpoint``: scales trained after quantization."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mlcalib._core import Grid
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints import FileCheckpoint, open_checkpoint
from mlcalib.checkpoints.convert import rewrite
from mlcalib.common.files import check_output
from mlcalib.common.hub import hub_name, located
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.device import choose_device
from mlcalib.models.loading import load_model, shared_copy
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.quantized_model import QuantizedModel
from mlcalib.quantization.scale_tuning import ScaleTraining, Tuned, Tuning
from mlcalib.quantization.scaled_linear import check_grids
from mlcalib.quantization.text_check import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNING_RATE, EPOCHS = 5e-4, 2


def tune(
    quantized: QuantizedModel,
    calibration: CalibrationSet | None = None,
    *,
    model: "str | Path | PreTrainedModel | None" = None,
    learning_rate: float = LEARNING_RATE,
    epochs: int = EPOCHS,
    batch: int = 2,
    held_out: float = 0.125,
    seed: int = 0,
    progress: bool = True,
) -> QuantizedModel:
    """Train the scales of a quantized model until its predictions are nearer the float model's.

    Codes and zero points stay as they are, and so does the size of the model. The loss is the KL
    divergence of its predictions from the float model's, per token, over text in all languages.
    Some text of each language is held out: the scales that are best on it are kept, and those that
    the model had are among them.

    In memory are the float model, the quantized model, three numbers for each scale, and what the
    gradients of one block and one sequence need. The models run where they are.

    Args:
        quantized: what ``mlcalib.quantize`` returned; it is not changed.
        calibration: the text; None for that which the model was quantized with.
        model: the float model, as for ``mlcalib.quantize``; None for the one that was quantized,
            which is then read again.
        learning_rate: by how much a scale changes in a step at most, about, as a part of it; it
            falls to 0 over all steps.
        epochs: how often all text is read.
        batch: sequences in a step.
        held_out: the share of the sequences of each language that is held out; a language with two
            or more has one at least.
        seed: of the order in which sequences are read.
        progress: show a bar.

    Returns:
        The same model with other scales. ``tuned`` says what was done, and what it brought in each
        language. Losses of linears are those before.

    Raises:
        ValueError: scales that cannot move freely (K-quants, MXFP4, NVFP4, FP8 with one scale for
            each tensor); no text, or too little to hold some out, or text that the model cannot
            read; a float model with another vocabulary; predictions with NaN or Inf; an option that
            is not possible.
        OSError: the float model is not where it was.
    """
    options = Tuning(learning_rate, epochs, batch, held_out, seed)
    check_grids({name: each.grid.spec for name, each in quantized.linears.items()})
    text = quantized.calibration if calibration is None else calibration
    if text is None:
        raise ValueError(
            f"The model was quantized without text ({quantized.recipe['method']}); give a "
            "calibration set to tune on (mlcalib.calibration)."
        )
    check_text(quantized.model, text, quantized.tokenizer)
    if model is None:
        model = _original(quantized)
    stopwatch = Stopwatch()
    with stopwatch.timed("tune"):
        reference = _float_model(model, quantized.model.dtype, quantized.model.device)
        training = ScaleTraining(
            quantized.model, quantized.adapter, quantized.linears, reference, text, options
        )
        tuned = training.run("tuning scales" if progress else None)
    linears = {
        name: each.replaced(grid=Grid(tuned.scales[name], each.grid.zero, each.grid.spec))
        for name, each in quantized.linears.items()
    }
    result = shared_copy(quantized.model)
    for name in tuned.scales:
        owner = linears[quantized.adapter.places.get(name, name)]
        layer = result.get_submodule(name)
        weight = owner.dequantize().to(quantized.model.get_submodule(name).weight)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return replace(
        quantized,
        model=result,
        linears=linears,
        seconds={**quantized.seconds, **stopwatch.seconds},
        tuned=[*quantized.tuned, tuning_record(_name_of(model), text, options, tuned)],
    )


def tune_checkpoint(  # noqa: PLR0913 - two models, text, and how
    folder: str | Path,
    model: str | Path,
    out: str | Path,
    calibration: CalibrationSet,
    *,
    learning_rate: float = LEARNING_RATE,
    epochs: int = EPOCHS,
    batch: int = 2,
    held_out: float = 0.125,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Tune the scales of a checkpoint, mlcalib's or another tool's; see ``mlcalib.tune``.

    The new checkpoint differs from the old one in the tensors that hold scales, and in
    ``mlcalib.json`` and the model card, which say that it was tuned.

    Args:
        folder: a quantized checkpoint, in a format that keeps codes.
        model: the float model that was quantized: a folder, a hub name or a GGUF file.
        out: a folder that does not exist.
        calibration: the text.
        learning_rate: see ``mlcalib.tune``, as for what follows.
        epochs: how often all text is read.
        batch: sequences in a step.
        held_out: share of the sequences.
        seed: of the order.
        device: where both models run: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU, where
            there is one and mlcalib was built for it).
        progress: show a bar.

    Returns:
        What was done, as the list ``tuned`` of ``mlcalib.json`` has it.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: see ``mlcalib.tune``; a damaged checkpoint, or one without codes.
        NotImplementedError: a GGUF file; linears that the model does not have as such.
    """
    options = Tuning(learning_rate, epochs, batch, held_out, seed)
    check_output(out)
    checkpoint = open_checkpoint(folder)
    if isinstance(checkpoint, FileCheckpoint):
        raise NotImplementedError(
            f"{folder} is a GGUF file, of which not only the scales can be written; tune the same "
            "model in another format, and convert it (mlcalib convert OUT --format gguf)."
        )
    check_grids(checkpoint.specs)
    place = choose_device(device)
    source = open_source(str(folder), "auto").loaded()
    check_text(source.model, calibration)
    names = {
        source.adapter.saved(name): name for name, _ in source.adapter.named_linears(source.model)
    }
    if strange := [name for name in checkpoint.linears if name not in names]:
        raise NotImplementedError(
            f"{folder} has codes of {strange[0]}, which is no linear of a block that mlcalib "
            "quantizes; its scales cannot be tuned."
        )
    reference = _float_model(model, source.dtype, place)
    linears = {names[name]: checkpoint.linear(name).to(place) for name in checkpoint.linears}
    student = source.model.to(place)
    training = ScaleTraining(student, source.adapter, linears, reference, calibration, options)
    tuned = training.run("tuning scales" if progress else None)
    record = tuning_record(_name_of(model), calibration, options, tuned)
    scales = {name: tuned.scales[own].cpu() for name, own in names.items() if own in linears}
    rewrite(folder, out, scales, record)
    return record


def tuning_record(
    model: str, text: CalibrationSet, options: Tuning, tuned: Tuned
) -> dict[str, Any]:
    """Return what is recorded of a training; JSON types.

    ``kl`` is KL(float ‖ quantized) of held-out text, in nats per token: language → before, and
    with the scales that were kept.
    """
    before, after = tuned.divergences[0], tuned.divergences[tuned.kept]
    return {
        "model": model,
        "learning_rate": options.learning_rate,
        "epochs": options.epochs,
        "kept_epoch": tuned.kept,
        "batch": options.batch,
        "held_out": options.held_out,
        "seed": options.seed,
        "tokens": tuned.tokens,
        "held_out_tokens": tuned.held_out,
        "kl": {language: [kl, after[language]] for language, kl in before.items()},
        "calibration": text.describe(),
    }


def _original(quantized: QuantizedModel) -> str | Path:
    """Return what a model was read from before it was quantized.

    Raises:
        ValueError: it was given in memory.
    """
    name: str = quantized.recipe["model"]
    if quantized.folder is None and "/" not in name and not Path(name).exists():
        raise ValueError(
            f"The float model ({name}) was given in memory when it was quantized; give it again "
            "(model=)."
        )
    return quantized.folder or name


def _float_model(
    model: "str | Path | PreTrainedModel", dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    """Return the float model, on a device where it is read here."""
    if not isinstance(model, str | Path):
        return model
    return load_model(str(located(model, None, None)), str(dtype).removeprefix("torch."), device)


def _name_of(model: "str | Path | PreTrainedModel") -> str:
    if isinstance(model, str | Path):
        return hub_name(str(model))
    return model.config.name_or_path or type(model).__name__
