"""From a model's files to a checkpoint's files, a block at a time."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.files import check_output, full_path, locked, parts_folder, remove_partial
from mlcalib.common.hub import located
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_read import read_json
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.device import choose_device, own_device
from mlcalib.models.loading import load_tokenizer
from mlcalib.quantization.block_files import BlockFiles
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.block_steps import Propagate
from mlcalib.quantization.finish import finish, finish_record
from mlcalib.quantization.hidden_states import HiddenStatesOnDisk
from mlcalib.quantization.manifest import claim, machine, recipe_inputs
from mlcalib.quantization.memory import MemoryPlan
from mlcalib.quantization.model_files import ModelFiles, outline
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.pass_plan import plan_pass
from mlcalib.quantization.prefixes import mixture_of
from mlcalib.quantization.quality import with_quality
from mlcalib.quantization.quantization_job import QuantizationJob
from mlcalib.quantization.recipe import Recipe, check_method, check_ranks, make_recipe
from mlcalib.quantization.scheme import choose
from mlcalib.quantization.shared_sink import shared_sink
from mlcalib.quantization.sink import FileSink, Sink
from mlcalib.quantization.source import Source
from mlcalib.quantization.text_check import check_text
from mlcalib.quantization.variant import Variant
from mlcalib.quantizers import Method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def quantize_checkpoint(  # noqa: PLR0913 - what a quantization is made of
    model: str | Path,
    out: str | Path,
    calibration: CalibrationSet | Callable[[], CalibrationSet] | None = None,
    *,
    method: Method | None = None,
    scheme: str | None = None,
    quality: Literal["fast", "balanced", "best"] | None = None,
    propagate: Propagate | None = None,
    format: str | None = None,  # noqa: A002
    activation_clip: float = 0.0,
    kv_cache: Literal["fp8"] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    hidden_states: Literal["memory", "disk"] = "memory",
    progress: bool = True,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    revision: str | None = None,
    token: str | None = None,
    ranks: Ranks | None = None,
    other_threads: bool = False,
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
        scheme: see ``mlcalib.quantize``.
        quality: see ``mlcalib.quantize``.
        propagate: see ``mlcalib.quantize``.
        format: see ``mlcalib.quantize``.
        activation_clip: see ``mlcalib.quantize``.
        kv_cache: see ``mlcalib.quantize``.
        dtype: see ``mlcalib.quantize``.
        device: see ``mlcalib.quantize``.
        memory: see ``mlcalib.quantize``.
        hidden_states: where the text lives between two blocks: ``memory``, or ``disk``, from where
            a killed run goes on at once; otherwise it takes the text through the finished blocks.
        progress: show a bar.
        ignore: see ``mlcalib.quantize``.
        overrides: see ``mlcalib.quantize``.
        revision: see ``mlcalib.quantize``.
        token: see ``mlcalib.quantize``.
        ranks: the processes that do this together, from ``joined_ranks``; each calls this with the
            same arguments, and rank 0 writes. On the CPU any number of them gives the same codes,
            and an unfinished run goes on with any; the record says which blocks were made by how
            many.
        other_threads: let an unfinished run go on with another number of threads, which moves the
            last bits of the blocks that are still to be made; the record says which.
        options: of the quantizer, see ``mlcalib.quantize``.

    Returns:
        What ``mlcalib.json`` records.

    Raises:
        FileExistsError: ``out`` exists.
        OSError: the disk is full; what is finished is kept.
        ValueError: see ``mlcalib.quantize``; or an unfinished run that began with other inputs.
        NotImplementedError, torch.linalg.LinAlgError: see ``mlcalib.quantize``.
        RankLostError: another rank has ended; what is finished is kept.
    """
    ranks = Ranks() if ranks is None else ranks
    device = own_device(device, ranks)
    method, options, format = choose(method, scheme, format, options)  # noqa: A001
    propagate, options = with_quality(quality, method, propagate, options)
    model = located(model, revision, token)
    asked = _Asked(
        model,
        calibration,
        method,
        propagate,
        format,
        dtype,
        ignore,
        overrides,
        options,
        activation_clip,
        kv_cache,
    )
    _check_place(hidden_states)
    place = choose_device(device)
    out = full_path(out)
    folder = parts_folder(out)
    if ranks.writes and not folder.is_dir():
        check_output(out)
    stopwatch = Stopwatch()
    with stopwatch.timed("load"):
        source, tokenizer = asked.open()
    recipe = asked.recipe(source, tokenizer)
    check_ranks(recipe, ranks)
    text = asked.text(source, tokenizer)
    with stopwatch.timed("load"):
        source = source.ready()
    inputs = machine(place) | recipe_inputs(recipe, text)
    if not ranks.alone:
        recipe_apart = {**recipe.description, "model": outline(source.name)}  # wherever it lies
        ranks.check_same({**inputs, "recipe": recipe_apart})
    with locked(folder) if ranks.writes else nullcontext():
        files = ModelFiles(source.name, folder) if ranks.writes else None
        done = False
        if files is not None:
            what = f"The quantization to {out}"
            inputs |= {"model": files.identities()}
            if claim(folder, what, inputs, other_threads=other_threads):
                remove_partial(out)
                done = (out / "mlcalib.json").is_file()  # it was killed when all was written
        if ranks.of_first(done):
            return _finished(folder, out, ranks)
        sink = _sink(folder, source, recipe, ranks)
        job = QuantizationJob(_variant(recipe, text), sink, ranks=ranks)
        states = _hidden(folder, ranks) if hidden_states == "disk" else None
        with nullcontext() if files is None else files.hashed(to_the_end=False):
            run_pass(
                source,
                [job],
                text,
                propagate=propagate,
                hidden=states,
                stopwatch=stopwatch,
                description="quantizing" if progress and ranks.writes else None,
                device=device,
                memory=memory,
                ranks=ranks,
            )
        if ranks.writes:
            seconds = stopwatch.seconds | job.stopwatch.seconds
            record = finish_record(source, sink, recipe.description, text, seconds, place)
            finish(source, sink, recipe.specs, recipe.quantizer.order, tokenizer, out, record)
        return _finished(folder, out, ranks)


def _sink(folder: Path, source: Source, recipe: Recipe, ranks: Ranks) -> Sink:
    """Return what keeps the blocks, in files of rank 0."""
    own = None
    if ranks.writes:
        blocks = BlockFiles(folder / "blocks")
        own = FileSink(blocks, source.adapter, recipe.checkpoint_format, recipe.specs)
    names = [name for name, _ in source.adapter.named_blocks(source.model)]
    return shared_sink(own, names, ranks)


def _hidden(folder: Path, ranks: Ranks) -> HiddenStatesOnDisk:
    """Return where the text of this rank lies; another number of ranks shares it out anew."""
    own = "hidden" if ranks.alone else f"hidden-{ranks.rank}-of-{ranks.size}"
    return HiddenStatesOnDisk(folder / own)


def _finished(folder: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Remove what a run kept that is written, and return its record; collective."""
    if not ranks.writes:
        shutil.rmtree(folder / f"hidden-{ranks.rank}-of-{ranks.size}", ignore_errors=True)
        with suppress(OSError):  # rank 0 may keep its own there
            folder.rmdir()
    record: dict[str, Any] = ranks.of_first(
        read_json(out / "mlcalib.json") if ranks.writes else None
    )
    if ranks.writes:
        shutil.rmtree(folder)
    return record


def plan_checkpoint(  # noqa: PLR0913 - what a quantization is made of
    model: str | Path,
    calibration: CalibrationSet | Callable[[], CalibrationSet] | None = None,
    *,
    method: Method | None = None,
    scheme: str | None = None,
    quality: Literal["fast", "balanced", "best"] | None = None,
    propagate: Propagate | None = None,
    format: str | None = None,  # noqa: A002
    activation_clip: float = 0.0,
    kv_cache: Literal["fp8"] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    hidden_states: Literal["memory", "disk"] = "memory",
    ignore: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> MemoryPlan:
    """Return what ``quantize_checkpoint`` takes of its device's memory; no weight is read.

    With ``ranks`` it is that of each of them.

    The arguments are those of ``quantize_checkpoint``, and so are the errors.
    """
    ranks = Ranks() if ranks is None else ranks
    device = own_device(device, ranks)
    method, options, format = choose(method, scheme, format, options)  # noqa: A001
    propagate, options = with_quality(quality, method, propagate, options)
    asked = _Asked(
        model,
        calibration,
        method,
        propagate,
        format,
        dtype,
        ignore,
        overrides,
        options,
        activation_clip,
        kv_cache,
    )
    _check_place(hidden_states)
    source, tokenizer = asked.open()
    recipe = asked.recipe(source, tokenizer)
    text = asked.text(source, tokenizer)
    return plan_pass(
        source,
        [_variant(recipe, text)],
        text,
        source.places(device),
        on_disk=hidden_states == "disk",
        memory=memory,
        ranks=ranks,
    )


@dataclass(frozen=True)
class _Asked:
    """What was asked for; see ``quantize_checkpoint``."""

    model: str | Path
    calibration: CalibrationSet | Callable[[], CalibrationSet] | None
    method: str
    propagate: Propagate
    format: str
    dtype: str
    ignore: Sequence[str]
    overrides: Mapping[str, Mapping[str, Any]] | None
    options: Mapping[str, Any]
    activation_clip: float
    kv_cache: str | None

    def open(self) -> "tuple[Source, PreTrainedTokenizerBase]":
        """Return the model without weights, and its tokenizer; what can be checked is."""
        calibrated = self.calibration is not None
        check_method(self.method, self.propagate, calibrated=calibrated, options=self.options)
        source = open_source(self.model, self.dtype)
        return source, load_tokenizer(str(self.model))

    def recipe(self, source: Source, tokenizer: "PreTrainedTokenizerBase") -> Recipe:
        """Return what is done."""
        return make_recipe(
            source.model,
            source.adapter,
            tokenizer,
            name=source.name,
            dtype=source.dtype,
            method=self.method,
            propagate=self.propagate if self.calibration is not None else None,
            format=self.format,
            activation_clip=self.activation_clip,
            kv_cache=self.kv_cache,
            ignore=self.ignore,
            overrides=self.overrides,
            options=self.options,
        )

    def text(self, source: Source, tokenizer: "PreTrainedTokenizerBase") -> CalibrationSet | None:
        """Return the calibration text, made now if it is to be."""
        text = self.calibration() if callable(self.calibration) else self.calibration
        if text is not None:
            check_text(source.model, text, tokenizer)
        return text


def _variant(recipe: Recipe, text: CalibrationSet | None) -> Variant:
    """Return what solves, on all of a text."""
    mixture = {} if text is None else mixture_of(text)
    return recipe.variant(mixture)


def _check_place(hidden_states: str) -> None:
    if hidden_states not in ("memory", "disk"):
        raise ValueError(f"hidden_states is '{hidden_states}', expected 'memory' or 'disk'.")
