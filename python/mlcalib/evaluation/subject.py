"""A model that is evaluated, in whichever form it was given."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.checkpoints.record import origin
from mlcalib.common import compat
from mlcalib.common.safetensors_read import validate_folder
from mlcalib.evaluation.cache import Cache, fingerprint, tensors_sha256
from mlcalib.models.loading import check_source, load_tokenizer
from mlcalib.quantization.quantized_model import QuantizedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model: TypeAlias = "str | Path | QuantizedModel | PreTrainedModel"
"""The forms in which a model can be given."""

_DECIDING = (".json", ".jinja", ".model", ".txt")  # kinds of files beside the weights
_RECORD = "mlcalib.json"


class Subject:
    """A model that is loaded when it is first needed.

    Attributes:
        given: a folder, a hub name, a GGUF file, what ``mlcalib.quantize`` returned, or a
            transformers model.
        dtype: the dtype of a model that is loaded here.
        name: the model as it was given; for a transformers model, where it was loaded from.
        method: its quantizer from its ``mlcalib.json``, or ``float``.
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
    ) -> None:
        self.given = given
        self.dtype = dtype
        self._in_memory: PreTrainedModel | None = None
        if isinstance(given, QuantizedModel):
            self.name = str(given.recipe["model"])
            self._in_memory, self._tokenizer = given.model, given.tokenizer
        elif isinstance(given, str | Path):
            self.name = str(given)
            check_source(self.name)
        else:
            self.name = str(given.config.name_or_path) or type(given).__name__
            self._in_memory, self._tokenizer = given, _checked(tokenizer, given)
        self.method, self.calibration = _origin(given, self.name)
        self._fingerprint: str | None = None

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model in memory."""
        if self._in_memory is not None:
            return self._in_memory
        return load_to_run(self.name, self.dtype)

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
        return load_tokenizer(self.name)

    def fingerprint(self, cache: Cache) -> str:
        """Return a fingerprint of everything in the model that its results depend on.

        For a folder this is the content of its weights, configs, tokenizer and templates (but not
        of ``mlcalib.json`` and the model card); for a GGUF file its content; for a hub name the
        commit; for a model in memory its config and parameters.

        Args:
            cache: remembers the sha256 of files that have not changed.

        Raises:
            ValueError: a hub name has no commit.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprint({**self._content(cache), "dtype": self.dtype})
        return self._fingerprint

    def _content(self, cache: Cache) -> dict[str, Any]:
        if (model := self._in_memory) is not None:
            tensors = tensors_sha256(model.state_dict())
            return {"config": model.config.to_json_string(), "tensors": tensors}
        if (path := Path(self.name)).is_dir():
            weights = {Path(file) for file in validate_folder(path).values()}
            beside = {file for file in path.iterdir() if file.suffix in _DECIDING}
            files = {file for file in weights | beside if file.name != _RECORD}
            return {file.name: cache.sha256(file) for file in files}
        if path.is_file():
            return {"gguf": cache.sha256(path)}
        return {"hub": self.name, "commit": _commit(self.name)}


def evaluation_dtype(models: "Sequence[Model]", dtype: str = "auto") -> str:
    """Return the dtype in which models are evaluated if ``dtype`` was asked for.

    On a CPU with AMX, which multiplies bfloat16 many times faster than float32, ``auto`` becomes
    bfloat16. This holds only if all models are loaded here: a model in memory has a dtype already,
    and models are compared in one dtype. Everything else is returned unchanged.
    """
    in_memory = any(not isinstance(model, str | Path) for model in models)
    if dtype == "auto" and not in_memory and compat.multiplies_bfloat16():
        return "bfloat16"
    return dtype


def _commit(name: str) -> str:
    commit = compat.hub_commit(name)
    if commit is None:
        raise ValueError(
            f"'{name}' comes from the hub without a commit, so a cache cannot tell whether it is "
            "the model that was measured before; give a folder, or evaluate without --cache."
        )
    return commit


def _checked(
    tokenizer: "PreTrainedTokenizerBase | None", model: "PreTrainedModel"
) -> "PreTrainedTokenizerBase":
    if tokenizer is None:
        raise ValueError(
            f"A {type(model).__name__} was given without its tokenizer; give it too (tokenizer=…)."
        )
    return tokenizer


def _origin(model: Model, name: str) -> tuple[str, str]:
    if isinstance(model, QuantizedModel):
        calibration = model.calibration
        return model.recipe["method"], "none" if calibration is None else calibration.set_name
    return origin(name)
