"""Rises in token loss: of each cell, of each setting, and between settings, with intervals."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlcalib.report.study_report.folder import (
    FLOAT,
    Documents,
    ModelResults,
    StudyFile,
    Variant,
)
from mlcalib.results.significance import Difference, Part, combine, holm, resample

ENGLISH = "en"


@dataclass(frozen=True)
class Text:
    """Evaluation text of one language and how the float model does on it."""

    documents: int
    tokens: int
    loss: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """Token perplexity of the float model."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Measured:
    """Losses of one model's variants, with the resamples of the documents.

    Attributes:
        languages: those of the study.
        seed: of the resampling.
        parts: language → mean token loss of [models], for the models in ``order``.
        order: language → model → row in its part.
        texts: language → its text.
    """

    languages: list[str]
    seed: int
    parts: dict[str, Part]
    order: dict[str, dict[str, int]]
    texts: dict[str, Text]

    def has(self, variant: str, language: str) -> bool:
        """Whether the variant and the float model were measured in the language."""
        return variant in self.order.get(language, {})

    def complete(self, variant: str) -> bool:
        """Whether that is so in all languages of the study."""
        return bool(self.languages) and all(self.has(variant, code) for code in self.languages)

    def loss(self, variant: str, language: str) -> float:
        """Mean token loss in nats."""
        return float(self.parts[language].value[self.order[language][variant]])

    def rise(self, variant: str, language: str, base: str = FLOAT) -> Difference | None:
        """Mean token loss less that of the base; None where one was not measured."""
        if not (self.has(variant, language) and self.has(base, language)):
            return None
        return combine([self._contrast(language, variant, base, 1.0)], self.seed)

    def mean(self, variant: str, base: str = FLOAT) -> Difference | None:
        """Mean over all languages of ``rise``; None where one was not measured."""
        if not (self.complete(variant) and self.complete(base)):
            return None
        share = 1 / len(self.languages)
        parts = [self._contrast(code, variant, base, share) for code in self.languages]
        return combine(parts, self.seed)

    def worst(self, variant: str) -> str | None:
        """The language in which the variant's loss rises most; None where one is missing."""
        if not self.complete(variant):
            return None
        return max(self.languages, key=lambda code: self.loss(variant, code) - self._float(code))

    def between_worst(self, variant: str, base: str) -> Difference | None:
        """The variant's rise in its worst language less the base's in its own."""
        first, second = self.worst(base), self.worst(variant)
        if first is None or second is None:
            return None
        if first == second:
            return self.rise(variant, first, base)
        parts = [
            self._contrast(second, variant, FLOAT, 1.0),
            self._contrast(first, base, FLOAT, -1.0),
        ]
        return combine(parts, self.seed)

    def _float(self, language: str) -> float:
        return self.loss(FLOAT, language)

    def _contrast(self, language: str, variant: str, base: str, weight: float) -> Part:
        rows = self.order[language]
        weights = np.zeros(len(rows))
        weights[rows[variant]] += weight
        weights[rows[base]] -= weight
        return self.parts[language].contrast(weights)


def measure(plan: StudyFile, model: ModelResults, *, resamples: int, seed: int) -> Measured:
    """Resample the documents of every language once, for all variants together."""
    parts, orders, texts = {}, {}, {}
    for stream, code in enumerate(plan.evaluation.languages):
        found = {
            name: evaluation.documents[code]
            for name, evaluation in model.evaluations.items()
            if code in evaluation.documents
        }
        if FLOAT not in found:
            continue
        losses = [documents.loss for documents in found.values()]
        size = found[FLOAT].tokens
        parts[code] = resample(losses, size, resamples=resamples, seed=seed, stream=stream)
        orders[code] = {name: row for row, name in enumerate(found)}
        texts[code] = _text(found[FLOAT])
    return Measured(plan.evaluation.languages, seed, parts, orders, texts)


def _text(documents: Documents) -> Text:
    loss, tokens = sum(documents.loss), sum(documents.tokens)
    bits = loss / math.log(2) / sum(documents.bytes)
    return Text(len(documents.loss), tokens, loss / tokens, bits)


@dataclass(frozen=True)
class Column:
    """A column of a heat map: a variant under its setting's name."""

    variant: str
    setting: str | None
    label: str


@dataclass(frozen=True)
class Standing:
    """How one setting does over all languages.

    Attributes:
        mean: rise, mean over languages.
        worst: the language that it hurts most, and how much.
        wins: languages in which it is the best of the settings.
        close: languages in which it is not the best, nor told apart from the best.
        hurt: languages in which its loss differs from the float model's, each at 5 %.
        against_best: mean rise less that of the setting with the least.
    """

    column: Column
    mean: Difference | None
    worst: tuple[str, Difference] | None
    wins: int
    close: int
    hurt: int
    against_best: Difference | None


@dataclass(frozen=True)
class Grid:
    """One model × quantizer: languages × settings of one token budget.

    Attributes:
        quantizer: its name.
        tokens: the budget; None where nothing was calibrated.
        columns: a setting each; these compete.
        references: round to nearest on the same grid of codes, where the study has it.
    """

    plan: StudyFile
    measured: Measured
    quantizer: str
    tokens: int | None
    columns: list[Column]
    references: list[Column]

    @cached_property
    def rises(self) -> dict[tuple[str, str], Difference]:
        """(variant, language) → rise, of what was measured."""
        found = {}
        for column in [*self.references, *self.columns]:
            for code in self.measured.languages:
                if (rise := self.measured.rise(column.variant, code)) is not None:
                    found[column.variant, code] = rise
        return found

    @cached_property
    def adjusted(self) -> dict[tuple[str, str], float]:
        """(variant, language) → Holm's p, over all cells of the heat map that have a p."""
        return holm({key: rise.p for key, rise in self.rises.items() if rise.p is not None})

    def best(self, language: str) -> str | None:
        """The variant with the least rise in a language; None where fewer than two have one."""
        here = [
            column.variant for column in self.columns if (column.variant, language) in self.rises
        ]
        if len(here) < 2:
            return None
        return min(here, key=lambda variant: self.rises[variant, language].value)

    def behind(self, variant: str, language: str) -> Difference | None:
        """Rise over that of the best of the language."""
        best = self.best(language)
        return None if best is None else self.measured.rise(variant, language, best)

    @cached_property
    def standings(self) -> list[Standing]:
        """Of every column, in order."""
        means = {column.variant: self.measured.mean(column.variant) for column in self.columns}
        done = {variant: mean.value for variant, mean in means.items() if mean is not None}
        least = min(done, key=lambda variant: done[variant]) if done else None
        return [self._standing(column, means[column.variant], least) for column in self.columns]

    def _standing(self, column: Column, mean: Difference | None, least: str | None) -> Standing:
        wins = close = hurt = 0
        for code in self.measured.languages:
            rise, best = self.rises.get((column.variant, code)), self.best(code)
            hurt += rise is not None and rise.significant
            if rise is None or best is None:
                continue
            wins += best == column.variant
            behind = self.behind(column.variant, code)
            close += best != column.variant and behind is not None and not behind.significant
        worst = self.measured.worst(column.variant)
        return Standing(
            column,
            mean,
            None if worst is None else (worst, self.rises[column.variant, worst]),
            wins,
            close,
            hurt,
            None if least is None else self.measured.mean(column.variant, least),
        )

    def english(self) -> Standing | None:
        """The setting that has English only, if the study has one."""
        for standing in self.standings:
            if self._languages(standing.column) == {ENGLISH}:
                return standing
        return None

    def multilingual(self) -> Standing | None:
        """The setting with the most of the study's languages, and the fewest others besides."""
        every = set().union(*(self._languages(each) for each in self.columns))
        studied = set(self.measured.languages) or every

        def rank(standing: Standing) -> tuple[int, int]:
            mixed = self._languages(standing.column)
            return len(mixed & studied), -len(mixed)

        best = max(self.standings, key=rank, default=None)
        return best if best and rank(best)[0] > 1 else None

    def _languages(self, column: Column) -> set[str]:
        setting = self.plan.settings[column.setting] if column.setting else None
        return set(setting.languages) if setting else set()


def grids(plan: StudyFile, measured: Measured) -> list[Grid]:
    """Return the heat maps of one model: a quantizer × budget each, the main budget first.

    Settings compete on equal budgets. The main budget is the one with the most settings, of equals
    the greatest. Round to nearest, which has no setting, stands beside those of its bits and group
    size; it has a map of its own only where there are none.
    """
    budgets = [setting.tokens for setting in plan.settings.values()]
    ranked = sorted(set(budgets), key=lambda tokens: (-budgets.count(tokens), -tokens))
    found = []
    quantizers = dict.fromkeys(variant.quantizer for variant in plan.variants.values())
    for tokens in ranked:
        for quantizer in quantizers:
            columns = [
                Column(name, variant.setting, variant.setting)
                for name, variant in plan.variants.items()
                if variant.quantizer == quantizer
                and variant.setting is not None
                and plan.settings[variant.setting].tokens == tokens
            ]
            if columns:
                beside = _references(plan, columns[0].variant)
                found.append(Grid(plan, measured, quantizer, tokens, columns, beside))
    shown = {column.variant for grid in found for column in grid.references}
    for name, variant in plan.variants.items():
        if variant.setting is None and name not in shown:
            column = Column(name, None, variant.quantizer)
            found.append(Grid(plan, measured, variant.quantizer, None, [column], []))
    return found


def _references(plan: StudyFile, like: str) -> list[Column]:
    """Return what needs no text on the same grids and in the same format.

    Other formats round activations, or do not.
    """
    return [
        Column(name, None, f"none ({variant.method})")
        for name, variant in plan.variants.items()
        if variant.setting is None and _held(variant) == _held(plan.variants[like])
    ]


def _held(variant: Variant) -> list[Any]:
    """Return what of a variant says how weights and activations are held."""
    grid = ("bits", "group_size", "symmetric", "numbers", "super_block", "scale_bits", "mix")
    held = [variant.options.get(key) for key in (*grid, "per_tensor")]
    return [variant.format, *held]
