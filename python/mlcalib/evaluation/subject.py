"""A model that is evaluated, in whichever form it was given."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.checkpoints.record import origin
from mlcalib.common import compat
from mlcalib.common.sha256 import json_sha256
from mlcalib.evaluation.cache import Cache
from mlcalib.models.context import DEFAULT_SEQ_LEN, check_context, context_length, read_config
from mlcalib.models.device import CPU, device_name, input_device
from mlcalib.models.identity import content
from mlcalib.models.llm_int8 import LLMInt8, run_in_int8
from mlcalib.models.loading import check_source, load_model, load_tokenizer
from mlcalib.quantization.quantized_model import QuantizedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model: TypeAlias = "str | Path | QuantizedModel | LLMInt8 | PreTrainedModel"
"""The forms in which a model can be given."""


LLM_INT8 = "llm_int8"
"""The method of models that run with LLM.int8()."""


class Subject:
    """A model that is loaded when it is first needed.

    Attributes:
        given: a folder, a hub name, a GGUF file, one of these as ``LLMInt8``, what
            ``mlcalib.quantize`` returned, or a transformers model.
        dtype: the dtype of a model that is loaded here.
        device: where a model that is loaded here runs.
        name: what results call it. By default this is the model as it was given, and for a
            transformers model, where it was loaded from.
        method: its quantizer from its ``mlcalib.json``, ``llm_int8``, or ``float``.
        threshold: of LLM.int8(); None of other models.
        calibration: the name of its calibration set from its ``mlcalib.json``, or ``none``.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: the checkpoint or its record is damaged, or a transformers model was given
            without its tokenizer.
    """

    def __init__(
        self,
        given: Model,
        dtype: str = "auto",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        name: str | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.given = given
        self.dtype = dtype
        self.threshold = given.threshold if isinstance(given, LLMInt8) else None
        self._device = device
        self._in_memory: PreTrainedModel | None = None
        if isinstance(given, QuantizedModel):
            made = str(given.recipe["model"])
            self._in_memory, self._tokenizer = given.model, given.tokenizer
        elif isinstance(given, str | Path | LLMInt8):
            made = str(source_of(given))
            check_source(made)
        else:
            made = str(given.config.name_or_path) or type(given).__name__
            self._in_memory, self._tokenizer = given, _checked(tokenizer, given)
        self.method, self.calibration = _origin(given, made)
        self._source = made
        self.name = name or made
        self._fingerprint: str | None = None

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model in memory."""
        if self._in_memory is not None:
            return self._in_memory
        if self.threshold is not None:
            return run_in_int8(load_model(self._source, self.dtype, self._device), self.threshold)
        return load_to_run(self._source, self.dtype, self._device)

    @property
    def device(self) -> torch.device:
        """Where it runs: where a model in memory reads token ids."""
        return self._device if self._in_memory is None else input_device(self._in_memory)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return "model" in vars(self) or self._in_memory is not None

    def unload(self) -> None:
        """Remove a model that was loaded here from memory; it is loaded again when needed."""
        vars(self).pop("model", None)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        if self._in_memory is not None:
            return self._tokenizer
        return load_tokenizer(self._source)

    def fingerprint(self, cache: Cache) -> str:
        """Return a fingerprint of everything in the model that its results depend on.

        It is made of what ``mlcalib.models.identity.content`` says, the dtype, and the device where
        that is not the CPU.

        Args:
            cache: remembers the sha256 of files that have not changed.

        Raises:
            ValueError: a damaged checkpoint, or a hub name that leads to no commit.
        """
        if self._fingerprint is None:
            model = self._source if self._in_memory is None else self._in_memory
            where = {} if self.device.type == "cpu" else {"device": device_name(self.device)}
            how = {} if self.threshold is None else {LLM_INT8: self.threshold}
            known = {**content(model, cache.sha256), "dtype": self.dtype, **where, **how}
            self._fingerprint = json_sha256(known)
        return self._fingerprint


def source_of(model: Model) -> Model:
    """Return the folder, hub name or file of a model that is to run with LLM.int8()."""
    return model.model if isinstance(model, LLMInt8) else model


def name_apart(subjects: Sequence[Subject]) -> None:
    """Give models that results could not tell apart names that say how their options differ.

    Raises:
        ValueError: there are two that differ in nothing that is known.
    """
    for alike in _alike(subjects):
        recipes = [each.given.recipe for each in alike if isinstance(each.given, QuantizedModel)]
        if len(recipes) == len(alike):
            for each, words in zip(alike, _differences(recipes), strict=True):
                each.name += f" ({words})" if words else ""
    for alike in _alike(subjects):
        first = alike[0]
        raise ValueError(
            f"{len(alike)} models are all {first.name} ({first.method}, {first.calibration}), so "
            "results could not tell them apart; give each once, or names: "
            'mlcalib.evaluate({"one": model, "two": other}).'
        )


def _alike(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Return the subjects that share name, method and calibration, together."""
    together: dict[tuple[str, str, str], list[Subject]] = {}
    for each in subjects:
        together.setdefault((each.name, each.method, each.calibration), []).append(each)
    return [found for found in together.values() if len(found) > 1]


def _differences(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return of each recipe what is not the same in all: ``bits 4, group_size 32``."""
    keys = ("overrides", "propagate", "format", "dtype")
    flat = [{**recipe["options"], **{key: recipe[key] for key in keys}} for recipe in recipes]
    differing = [key for key in flat[0] if any(each.get(key) != flat[0][key] for each in flat)]
    return [", ".join(f"{key} {each.get(key)}" for key in differing) for each in flat]


def evaluation_dtype(
    models: "Sequence[Model]", dtype: str = "auto", device: torch.device = CPU
) -> str:
    """Return the dtype in which models are evaluated if ``dtype`` was asked for.

    On a CPU with AMX, which multiplies bfloat16 many times faster than float32, ``auto`` becomes
    bfloat16. This holds only if all models are loaded here: a model in memory has a dtype already,
    and models are compared in one dtype. Everything else is returned unchanged.
    """
    on_cpu = device.type == "cpu"
    in_memory = any(not isinstance(model, str | Path | LLMInt8) for model in models)
    if dtype == "auto" and on_cpu and not in_memory and compat.multiplies_bfloat16():
        return "bfloat16"
    return dtype


def evaluation_seq_len(models: "Sequence[Model]", seq_len: int | None = None) -> int:
    """Return the context with which models are evaluated if ``seq_len`` was asked for.

    If nothing was asked for, it is 512, or the context length of the model that has the shortest
    one.

    Raises:
        ValueError: ``seq_len`` is above the context length of a model, which is named.
    """
    configs = [_config(source_of(model)) for model in models]
    if seq_len is None:
        lengths = [length for _, config in configs if (length := context_length(config))]
        return min([DEFAULT_SEQ_LEN, *lengths])
    for name, config in configs:
        check_context(name, config, seq_len)
    return seq_len


def _config(model: Model) -> tuple[str, dict[str, Any]]:
    """Return the name and the config of a model."""
    if isinstance(model, str | Path):
        return str(model), read_config(str(model))
    assert not isinstance(model, LLMInt8)  # its source was given
    live = model.model if isinstance(model, QuantizedModel) else model
    return type(live).__name__, live.config.to_dict()


def _checked(
    tokenizer: "PreTrainedTokenizerBase | None", model: "PreTrainedModel"
) -> "PreTrainedTokenizerBase":
    if tokenizer is None:
        raise ValueError(
            f"A {type(model).__name__} was given without its tokenizer; give it too (tokenizer=…)."
        )
    return tokenizer


def _origin(model: Model, name: str) -> tuple[str, str]:
    if isinstance(model, LLMInt8):
        return LLM_INT8, "none"
    if isinstance(model, QuantizedModel):
        calibration = model.calibration
        return model.recipe["method"], "none" if calibration is None else calibration.set_name
    return origin(name)
