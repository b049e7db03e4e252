"""The grid of a study: calibration settings, and every quantizer on each of them."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

from pydantic import Field

from mlcalib.common.config import Config
from mlcalib.common.gguf_types import BLOCK_TYPES, MIXES
from mlcalib.evaluation.subject import LLM_INT8
from mlcalib.formats import formats
from mlcalib.languages import LanguageSet, language_set
from mlcalib.models.llm_int8 import THRESHOLD
from mlcalib.quantization.recipe import check_method
from mlcalib.quantization.scheme import SCHEMES, choose
from mlcalib.quantizers import quantizers
from mlcalib.studies.spec import QuantizerSpec, StudySpec

FLOAT = "float"
"""The name of the model before quantization, among the variants."""
Many = tuple[Any, ...]


def _many(value: Any) -> Many:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class Setting(Config):
    """A calibration setting with one budget.

    Attributes:
        name: can be part of a file name.
        languages: the languages, as the study writes them.
        tokens: the number of tokens of the whole setting; None if they are given per language.
        tokens_per_language: see ``SettingSpec``.
    """

    name: str
    languages: str
    tokens: int | None
    tokens_per_language: int | None

    @property
    def set(self) -> LanguageSet:
        """The languages and their shares."""
        return language_set(self.languages)


class VariantSpec(Config):
    """A checkpoint to be made of each model, or a way to run it.

    Attributes:
        name: can be part of a file name.
        setting: the name of the setting; None for a quantizer that needs no text.
        quantizer: method, scheme and options in short, without the setting; or the name that the
            study gives them.
        method: the name of the quantizer, or ``llm_int8``.
        options: the options of the quantizer.
        format: of the checkpoint; None for ``llm_int8``, which has none.
        propagate: ``float`` or ``quantized``.
        activation_clip: see ``mlcalib.quantize``.
    """

    name: str
    setting: str | None
    quantizer: str
    method: str
    options: dict[str, Any]
    format: str | None
    propagate: Literal["float", "quantized"]
    activation_clip: float = 0.0

    @property
    def threshold(self) -> float | None:
        """The outlier threshold of LLM.int8(); None for a checkpoint."""
        return self.options["threshold"] if self.format is None else None


def settings_of(spec: StudySpec) -> dict[str, Setting]:
    """Return name → calibration setting, in the order of the study.

    Raises:
        ValueError: two settings have the same name, or a language is unknown.
    """
    found: dict[str, Setting] = {}
    for each in spec.settings:
        named = each.name or language_set(each.languages).name
        per_language = _many(each.tokens_per_language)
        totals = _many(each.tokens)
        if each.tokens is None and each.tokens_per_language is None:
            totals = (spec.tokens,)
        several = len(totals) > 1 or len(per_language) > 1
        for total, single in product(totals, per_language):
            budget = total if single is None else single
            name = f"{named}-{budget}" if several else named
            if name in found:
                raise ValueError(f"Two settings are called '{name}'; give one another name.")
            found[name] = Setting(
                name=name, languages=each.languages, tokens=total, tokens_per_language=single
            )
            found[name].set  # noqa: B018 - an unknown language is found now
    return found


def variants_of(spec: StudySpec) -> dict[str, VariantSpec]:
    """Return name → variant: every quantizer on every setting, in the order of the study.

    Raises:
        ValueError: a quantizer, scheme, format or option is unknown, they do not fit together, two
            variants have the same name, there is no setting for a quantizer that needs one, or no
            evaluation for LLM.int8().
    """
    settings = list(settings_of(spec))
    found: dict[str, VariantSpec] = {}
    for each in spec.quantizers:
        int8 = each.method == LLM_INT8
        for variant in _int8(spec, each) if int8 else _quantized(spec, each, settings):
            if variant.name in (*found, FLOAT):
                raise ValueError(
                    f"Two variants are called '{variant.name}'; leave one out, or give one a name."
                )
            found[variant.name] = variant
    return found


class _Int8Options(Config):
    """The options of LLM.int8()."""

    threshold: float = Field(default=THRESHOLD, ge=0)


def _int8(spec: StudySpec, given: QuantizerSpec) -> Iterator[VariantSpec]:
    """Yield the variants of ``llm_int8``: float models that are evaluated in another way."""
    several = dict(given.model_extra or {})
    for name in ("scheme", "format", "propagate"):
        if getattr(given, name) is not None:
            raise ValueError(
                f"{LLM_INT8} has {name} {getattr(given, name)}, but runs the float model, and "
                f"writes no checkpoint; leave {name} out."
            )
    if spec.evaluation is None:
        raise ValueError(
            f"{LLM_INT8} writes no checkpoint and is only evaluated, but the study has no "
            "evaluation; leave it out, or give one."
        )
    for values in product(*map(_many, several.values())):
        options = _Int8Options(**dict(zip(several, values, strict=True)))
        usual = options.threshold == THRESHOLD
        own = LLM_INT8 if usual else f"{LLM_INT8}-threshold_{options.threshold:g}"
        label = given.name or own
        yield VariantSpec(
            name=label,
            setting=None,
            quantizer=label,
            method=LLM_INT8,
            options=options.model_dump(),
            format=None,
            propagate="float",
        )


def _quantized(spec: StudySpec, given: QuantizerSpec, settings: list[str]) -> Iterator[VariantSpec]:
    """Yield the checkpoints of a quantizer: of all its values, on every setting if it needs one."""
    several = dict(given.model_extra or {})
    modes, clips = _many(given.propagate or spec.propagate), _many(given.activation_clip)
    for scheme, form, *values, propagate, clip in product(
        _many(given.scheme), _many(given.format), *map(_many, several.values()), modes, clips
    ):
        asked = dict(zip(several, values, strict=True))
        own = SCHEMES[scheme].format if scheme in SCHEMES else None
        method, options, chosen = choose(given.method, scheme, form or own or spec.format, asked)
        ranges = formats.get(chosen).static_inputs
        check_method(method, propagate, calibrated=True, options=options)
        reads = bool(quantizers.get(method).needs) or ranges
        label = given.name or _label(method, scheme, form, asked)
        if reads and not settings:
            what = f"{chosen}, for its ranges of activations" if ranges else method
            raise ValueError(f"The study has no settings, which {what} needs.")
        if propagate == "quantized" and reads:
            label += "-quantized"
        if clip:
            label += f"-clip_{clip:g}"
        for setting in settings if reads else [None]:
            yield VariantSpec(
                name=label if setting is None else f"{label}-{setting}",
                setting=setting,
                quantizer=label,
                method=method,
                options=options,
                format=chosen,
                propagate=propagate if reads else "float",
                activation_clip=clip,
            )


def _label(method: str, scheme: str | None, form: str | None, options: Mapping[str, Any]) -> str:
    """Return what was asked for in short, e.g. ``gptq-w4-g64`` or ``rtn-W8A8``."""
    left = dict(options)
    scales = left.pop("scales", None)
    if isinstance(scales, Mapping):
        scales = "_".join(str(value) for value in scales.values())
    parts = [method if scales is None else f"{scales}+{method}"]
    mix = left.pop("mix", "")
    if named := scheme or mix:
        parts.append(named)
        for key, value in _meant(named).items():  # an object has them, too
            if left.get(key) == value:
                del left[key]
        if "group_size" in left:
            parts.append(_group(left.pop("group_size")))
    else:
        defaults = quantizers.get(method).Options()
        bits, size = (left.pop(key, getattr(defaults, key)) for key in ("bits", "group_size"))
        parts += [f"w{bits}", _group(size)]
        if left.pop("symmetric", False):
            parts.append("sym")
    parts += [f"{key}_{value}" for key, value in left.items()]
    return "-".join([*parts, *([form] if form else [])])


def _group(size: int) -> str:
    return "channel" if size == -1 else f"g{size}"


def _meant(scheme: str) -> dict[str, Any]:
    """Return the options that a scheme stands for, of a mix those of most of its grids."""
    if scheme in MIXES:
        return BLOCK_TYPES[MIXES[scheme]].options()
    return choose(None, scheme, None, {})[1]
