"""What a study is: models, calibration settings, quantizers and evaluations, as a YAML file."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlcalib.common.config import Config
from mlcalib.common.registry import unknown
from mlcalib.evaluation.tasks import PERPLEXITY, task_names


class SettingSpec(Config):
    """A calibration setting.

    Attributes:
        languages: a set (``multi10``), languages (``en,sw``) or shares (``en:0.7,sw:0.3``).
        tokens: of the whole setting, split by the shares; several make a setting each. Default: the
            study's.
        tokens_per_language: every language gives so many, and its share weighs its statistics;
            several make a setting each. Not with ``tokens``.
        name: default: the name of the set, and the tokens where there are several.
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


class QuantizerSpec(BaseModel):
    """A quantizer with its options; a list of values makes a quantizer of each.

    Attributes:
        method: its name.
        propagate: ``float`` (default: the study's) or ``quantized``: a pass of its own.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str
    propagate: Literal["float", "quantized"] | tuple[Literal["float", "quantized"], ...] | None = (
        None
    )


class EvaluationSpec(Config):
    """What the float model and every checkpoint are evaluated on.

    Attributes:
        tasks: ``perplexity``, and names of benchmark tasks (``mlcalib.evaluation.tasks``).
        languages: a set or a list.
        tokens: scored per language, for perplexity.
        corpus: for perplexity; default: the study's.
        data: folder with the tasks' local data; default: the hub's.
        limit: items per task and language; default: all.
        fidelity: compare each checkpoint's next-token distributions with the float model's, in the
            same forward as perplexity.
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
        languages: a set or a list.
        tokens: per language.
    """

    languages: str = "multi10"
    tokens: int = Field(default=1024, ge=1)


class StudySpec(Config):
    """A study; see the presets for examples.

    Attributes:
        name: of the study.
        source: where the grid comes from, for the record.
        models: folders, hub names, GGUF files, or ``smollm2``.
        settings: names of language sets, or ``SettingSpec``.
        quantizers: names, or ``QuantizerSpec``.
        corpus: as for ``mlcalib.calibration``.
        corpora: language → another corpus, such as those of ``code`` and ``math``.
        tokens: of a setting.
        seq_len: tokens of a sequence.
        seed: what documents are shuffled with.
        separator: what stands between documents.
        allow_short: use what there is where a language has too little text.
        propagate: ``float`` (all variants share one pass) or ``quantized`` (a pass for each).
        format: of the checkpoints.
        dtype: of the models.
        device: where models are quantized: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        hidden_states: ``memory`` or ``disk``.
        evaluation: of the checkpoints; None for none.
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
    seq_len: int = Field(default=512, ge=2)
    seed: int = 0
    separator: str | None = None
    allow_short: bool = False
    propagate: Literal["float", "quantized"] = "float"
    format: str = "compressed-tensors"
    dtype: str = "auto"
    device: str = "cpu"
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
        return [{"method": each} if isinstance(each, str) else each for each in given]


def preset_names() -> list[str]:
    """List the studies that come with mlcalib."""
    folder = files("mlcalib.studies").joinpath("presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir())


def read_study(study: str | Path | Mapping[str, Any], **changes: Any) -> StudySpec:
    """Read a study.

    Args:
        study: the name of a preset, the path of a YAML file, or its content.
        changes: of single keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown preset, invalid YAML, or a key or value that a study cannot have.
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
    return StudySpec(**{**content, **changes})
