"""Reading a study folder, as ``mlcalib study`` leaves it, finished or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlcalib.common.checked import first_problem
from mlcalib.common.json_text import loads
from mlcalib.results.rows import Row

LAYOUT = 1
FLOAT = "float"
ByLanguage = dict[str, dict[str, float]]
"""Linear → language → number."""
Ranges = dict[str, dict[str, tuple[float, float]]]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Setting(_Part):
    """A calibration setting: a language mix and a token budget."""

    set_name: str = Field(alias="set")
    tokens: int
    languages: dict[str, int]


class Variant(_Part):
    """Quantizer options × setting."""

    setting: str | None = None
    method: str
    quantizer: str
    options: dict[str, Any] = {}
    format: str | None = None

    @property
    def has_checkpoint(self) -> bool:
        """Whether weights are written; LLM.int8() is only a way to run the float model."""
        return self.method != "llm_int8"


class EvaluationPlan(_Part):
    """What is evaluated."""

    tasks: list[str] = []
    languages: list[str] = []
    tokens: int | None = None
    seq_len: int | None = None
    definition: str = ""


class ModelInfo(_Part):
    """A model of the study."""

    source: str
    parameters: int | None = None
    dtype: str | None = None


class StudyFile(_Part):
    """``study.json``."""

    layout: int
    name: str
    source: str = ""
    mlcalib: str = "not recorded"
    versions: dict[str, str] = {}
    isa: str = "not recorded"
    threads: int | None = None
    corpus: str = "not recorded"
    seq_len: int | None = None
    seed: int | None = None
    propagate: str = "not recorded"
    models: dict[str, ModelInfo]
    settings: dict[str, Setting]
    variants: dict[str, Variant]
    evaluation: EvaluationPlan = EvaluationPlan()
    layers: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "StudyFile":
        if self.layout != LAYOUT:
            raise ValueError(f"its layout is {self.layout}; this mlcalib reads {LAYOUT}")
        for name, variant in self.variants.items():
            if variant.setting is not None and variant.setting not in self.settings:
                raise ValueError(f"variant '{name}' has the unknown setting '{variant.setting}'")
        return self


class Documents(_Part):
    """Sums over each document of one language's evaluation text."""

    loss: list[float]
    tokens: list[int]
    bytes: list[int]

    @model_validator(mode="after")
    def _as_long(self) -> "Documents":
        counts = len(self.loss), len(self.tokens), len(self.bytes)
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(f"loss, tokens, bytes have {counts} documents; expected the same")
        if sum(self.tokens) < 1 or sum(self.bytes) < 1:
            raise ValueError("no token was scored")
        return self


class MissingCell(_Part):
    """A task without a score in a language, and why."""

    task: str
    language: str
    metric: str | None = None
    reason: str
    fillers: list[str] = []

    def __str__(self) -> str:
        offer = f" (try {' or '.join(self.fillers)})" if self.fillers else ""
        return f"{self.reason}{offer}"


class Evaluation(_Part):
    """``evaluations/<variant>.json``."""

    seconds: float | None = None
    rows: list[Row] = []
    documents: dict[str, Documents] = {}
    divergence: dict[str, list[float]] = {}
    items: dict[str, dict[str, list[float | None]]] = {}
    missing: list[MissingCell] = []


class Record(_Part):
    """``variants/<variant>.json``."""

    losses: ByLanguage = {}
    heldout: ByLanguage = {}
    divergence: ByLanguage = {}
    clipped: ByLanguage = {}
    warnings: list[str] = []
    seconds: dict[str, float] = {}
    bytes: int | None = None
    bits_per_weight: float | None = None


class Outside(_Part):
    """Evaluation activations outside the range of the calibration text."""

    share: float
    channels: dict[int, float] = {}


class Layers(_Part):
    """``layers.json``."""

    power: ByLanguage = {}
    ranges: Ranges = {}
    heldout_ranges: Ranges = {}
    outside: dict[str, dict[str, dict[str, Outside]]] = {}


class Costs(_Part):
    """``costs.json``."""

    seconds: dict[str, float] = {}
    peak_bytes: int | None = None
    tokens: int | None = None
    separate_tokens: int | None = None


@dataclass(frozen=True)
class ModelResults:
    """What was measured of one model; a variant that is not done yet is absent.

    Attributes:
        slug: the name of its folder.
        info: what study.json says of it.
        evaluations: ``float`` or variant → evaluation.
        records: variant → how it was quantized.
        layers, costs: empty where the file is not there.
    """

    slug: str
    info: ModelInfo
    evaluations: dict[str, Evaluation]
    records: dict[str, Record]
    layers: Layers
    costs: Costs


@dataclass(frozen=True)
class Study:
    """A study folder in memory."""

    plan: StudyFile
    models: list[ModelResults]


_File = TypeVar("_File", bound=_Part)


def read_study(folder: str | Path) -> Study:
    """Read a study folder.

    Raises:
        FileNotFoundError: there is no study.json in it.
        ValueError: a file that is damaged, or is not what a study writes; names it.
    """
    folder = Path(folder)
    if not (folder / "study.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a study folder: there is no study.json in it. Give the folder that "
            "'mlcalib study --out' wrote."
        )
    plan = _read(folder / "study.json", StudyFile)
    return Study(plan, [_model(folder / slug, plan, slug) for slug in plan.models])


def _model(folder: Path, plan: StudyFile, slug: str) -> ModelResults:
    evaluations = _each(folder / "evaluations", [FLOAT, *plan.variants], Evaluation)
    if FLOAT in evaluations:
        for name, evaluation in evaluations.items():
            _check_paired(folder, evaluations[FLOAT], name, evaluation)
    return ModelResults(
        slug,
        plan.models[slug],
        evaluations,
        _each(folder / "variants", list(plan.variants), Record),
        _read(folder / "layers.json", Layers, optional=True),
        _read(folder / "costs.json", Costs, optional=True),
    )


def _check_paired(folder: Path, base: Evaluation, name: str, other: Evaluation) -> None:
    path = folder / "evaluations" / f"{name}.json"
    for code in base.documents.keys() & other.documents.keys():
        first, second = base.documents[code], other.documents[code]
        if (first.tokens, first.bytes) != (second.tokens, second.bytes):
            raise ValueError(
                f"{path} has other documents in '{code}' than float.json beside it; a paired "
                "comparison needs the same. Remove the file and run the study again."
            )
    for task in base.items.keys() & other.items.keys():
        for code in base.items[task].keys() & other.items[task].keys():
            counts = len(base.items[task][code]), len(other.items[task][code])
            if counts[0] != counts[1]:
                raise ValueError(
                    f"{path} has {counts[1]} items of {task} in '{code}', float.json beside it "
                    f"{counts[0]}; expected the same. Remove the file and run the study again."
                )


def _each(folder: Path, names: list[str], kind: type[_File]) -> dict[str, _File]:
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: _read(path, kind) for name, path in paths.items() if path.is_file()}


def _read(path: Path, kind: type[_File], *, optional: bool = False) -> _File:
    if optional and not path.is_file():
        return kind()
    try:
        return kind.model_validate(loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = first_problem(error)
    except ValueError as error:  # no JSON, or no UTF-8
        problem = str(error)
    raise ValueError(
        f"{path} is damaged or was not written by 'mlcalib study' ({problem}). Restore it, or "
        "remove it and run the study again, which makes what is missing."
    )
