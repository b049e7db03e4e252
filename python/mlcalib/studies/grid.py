"""The grid of a study: calibration settings, and every quantizer on each of them."""

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

from mlcalib.common.config import Config
from mlcalib.common.gguf_types import BLOCK_TYPES, MIXES
from mlcalib.languages import LanguageSet, language_set
from mlcalib.quantization.recipe import check_method
from mlcalib.quantizers import quantizers
from mlcalib.studies.spec import StudySpec

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
    """A checkpoint to be made of each model.

    Attributes:
        name: can be part of a file name.
        setting: the name of the setting; None for a quantizer that needs no text.
        quantizer: method and options in short, without the setting.
        method: the name of the quantizer.
        options: the options of the quantizer.
        propagate: ``float`` or ``quantized``.
    """

    name: str
    setting: str | None
    quantizer: str
    method: str
    options: dict[str, Any]
    propagate: Literal["float", "quantized"]


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
        ValueError: a quantizer or option is unknown, two variants have the same name, or there is
            no setting for a quantizer that needs one.
    """
    settings = settings_of(spec)
    found: dict[str, VariantSpec] = {}
    for each in spec.quantizers:
        kind = quantizers.get(each.method)
        given = each.model_extra or {}
        modes = _many(each.propagate or spec.propagate)
        for values, propagate in product(product(*map(_many, given.values())), modes):
            options = dict(zip(given, values, strict=True))
            check_method(each.method, propagate, calibrated=True, options=options)
            label = _label(each.method, options)
            if kind.needs and not settings:
                raise ValueError(f"The study has no settings, which {each.method} needs.")
            if propagate == "quantized" and kind.needs:
                label += "-quantized"
            for setting in list(settings) if kind.needs else [None]:
                name = label if setting is None else f"{label}-{setting}"
                if name in found:
                    raise ValueError(f"Two variants are called '{name}'; leave one out.")
                found[name] = VariantSpec(
                    name=name,
                    setting=setting,
                    quantizer=label,
                    method=each.method,
                    options=options,
                    propagate=propagate if kind.needs else "float",
                )
    return found


def _label(method: str, options: Mapping[str, Any]) -> str:
    """Return method and options in short, e.g. ``gptq-w4-g64``."""
    left = dict(options)
    scales = left.pop("scales", None)
    if isinstance(scales, Mapping):
        scales = "_".join(str(value) for value in scales.values())
    parts = [method if scales is None else f"{scales}+{method}"]
    if mix := left.pop("mix", ""):
        parts.append(mix)
        for key in BLOCK_TYPES[MIXES[mix]].options():  # an object has them, too
            left.pop(key, None)
    else:
        defaults = quantizers.get(method).Options()
        bits, size = (left.pop(key, getattr(defaults, key)) for key in ("bits", "group_size"))
        parts += [f"w{bits}", "channel" if size == -1 else f"g{size}"]
        if left.pop("symmetric", False):
            parts.append("sym")
    return "-".join([*parts, *(f"{key}_{value}" for key, value in left.items())])
