"""All that a report says of one study, computed."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlcalib.report.evaluation_report.compared import Compared
from mlcalib.report.study_report.benchmarks import compared
from mlcalib.report.study_report.comparison import Column, Grid, Measured, grids, measure
from mlcalib.report.study_report.folder import FLOAT, ModelResults, Study, StudyFile, read_study
from mlcalib.report.study_report.layers import Activations, activations
from mlcalib.results.significance import Difference

ALL = "all quantizers"
"""What quantizers that stand side by side are called together."""


@dataclass(frozen=True)
class Point:
    """A setting on a curve of calibration sizes.

    Attributes:
        seconds: that its calibration pass takes alone, in proportion to its tokens.
    """

    setting: str
    set_name: str
    tokens: int
    languages: int
    mean: Difference
    worst: tuple[str, Difference]
    seconds: float | None


@dataclass(frozen=True)
class ModelReport:
    """One model of the study.

    Attributes:
        study: the whole.
        model: as read.
        measured: its losses, resampled.
        grids: its heat maps: the main budget's quantizers, then those of other budgets.
        resamples: of the bootstrap.
    """

    study: Study
    model: ModelResults
    measured: Measured
    grids: list[Grid]
    resamples: int

    @cached_property
    def main(self) -> list[Grid]:
        """Heat maps of the main budget; round to nearest where it stands alone."""
        return [grid for grid in self.grids if grid.tokens in (None, self.grids[0].tokens)]

    @cached_property
    def others(self) -> list[Grid]:
        """Heat maps of the other budgets."""
        return [grid for grid in self.grids if grid.tokens not in (None, self.grids[0].tokens)]

    @cached_property
    def compared(self) -> dict[str, Compared]:
        """Quantizer of the main budget → its benchmark tasks, where they were measured.

        Where no settings compete, all quantizers stand side by side instead, with perplexity.
        """
        evaluations, settings = self.model.evaluations, [len(grid.columns) for grid in self.main]
        resamples, seed = self.resamples, self.measured.seed
        if len(settings) > 1 and max(settings) == 1:
            shown = {
                each.variant for grid in self.main for each in [*grid.references, *grid.columns]
            }
            variants = self.study.plan.variants.items()
            labels = {name: each.quantizer for name, each in variants if name in shown}
            every = compared(evaluations, labels, resamples, seed, perplexity=True)
            return {} if every is None else {ALL: every}
        found = {}
        for grid in self.main:
            labels = {each.variant: each.label for each in [*grid.references, *grid.columns]}
            found[grid.quantizer] = compared(evaluations, labels, resamples, seed)
        return {quantizer: each for quantizer, each in found.items() if each is not None}

    def points(self, quantizer: str) -> list[Point]:
        """All settings of a quantizer that were measured in all languages."""
        found = []
        for grid in self.grids:
            for standing in grid.standings if grid.quantizer == quantizer else ():
                name = standing.column.setting
                if name is None or standing.mean is None or standing.worst is None:
                    continue
                setting = self.study.plan.settings[name]
                found.append(
                    Point(
                        name,
                        setting.set_name,
                        setting.tokens,
                        len(setting.languages),
                        standing.mean,
                        standing.worst,
                        self._alone(setting.tokens),
                    )
                )
        return sorted(found, key=lambda point: point.tokens)

    def _alone(self, tokens: int) -> float | None:
        costs = self.model.costs
        spent = [costs.seconds.get(phase) for phase in ("forward", "gram")]
        if not costs.tokens or None in spent:
            return None
        return sum(each for each in spent if each is not None) * tokens / costs.tokens

    @cached_property
    def layer_languages(self) -> list[str]:
        """Languages that layers were measured on: evaluated ones first, then others."""
        layers = self.model.layers
        found = {
            code
            for by_linear in (layers.power, layers.heldout_ranges)
            for by_language in by_linear.values()
            for code in by_language
        }
        first = [code for code in self.measured.languages if code in found]
        return first + sorted(found.difference(first))

    def pair(self, grid: Grid) -> tuple[Column, Column] | None:
        """Return the English-only column and the one with the most languages, if both exist."""
        english, multilingual = grid.english(), grid.multilingual()
        return None if not (english and multilingual) else (english.column, multilingual.column)

    @cached_property
    def activations(self) -> dict[str, Activations]:
        """Setting → activations, of the main budget's settings that were measured."""
        names = dict.fromkeys(
            column.setting for grid in self.main for column in grid.columns if column.setting
        )
        return {
            name: activations(self.study, self.model, name)
            for name in names
            if name in self.model.layers.outside
        }

    def missing(self) -> list[str]:
        """Say what is not there yet, a line each."""
        variants = self.study.plan.variants
        names = list(variants)
        quantized = [each for each in names if variants[each].has_checkpoint]
        evaluations = [each for each in [FLOAT, *names] if each not in self.model.evaluations]
        records = [each for each in quantized if each not in self.model.records]
        found = []
        for what, absent, total in (
            ("evaluation", evaluations, len(names) + 1),
            ("checkpoint", records, len(quantized)),
        ):
            if absent:
                quoted = ", ".join(f"`{each}`" for each in absent)
                found.append(f"{len(absent)} of {total} have no {what}: {quoted}")
        layers, costs = self.model.layers, self.model.costs
        if self.study.plan.layers and not (layers.power or layers.outside):
            found.append("layers.json: power and activation ranges")
        if not costs.seconds:
            found.append("costs.json: time and memory")
        return found


@dataclass(frozen=True)
class Results:
    """One study.

    Attributes:
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    study: Study
    models: list[ModelReport]
    resamples: int
    seed: int


def results(folder: str | Path, *, resamples: int | None, seed: int) -> Results:
    """Read and compute.

    By default 10,000 resamples, or 100 for each cell of a heat map where that is more: the least p
    is 2 / resamples, and Holm's correction multiplies it by the number of cells.

    Raises:
        FileNotFoundError, ValueError: as ``read_study``.
    """
    study = read_study(folder)
    if resamples is None:
        resamples = max(10_000, 100 * len(study.plan.evaluation.languages) * _columns(study.plan))
    models = []
    for model in study.models:
        measured = measure(study.plan, model, resamples=resamples, seed=seed)
        models.append(ModelReport(study, model, measured, grids(study.plan, measured), resamples))
    return Results(study, models, resamples, seed)


def _columns(plan: StudyFile) -> int:
    """Count the columns of the widest heat map."""
    maps = Counter(
        (variant.quantizer, plan.settings[variant.setting].tokens)
        for variant in plan.variants.values()
        if variant.setting is not None
    )
    alone = sum(variant.setting is None for variant in plan.variants.values())
    return max(maps.values(), default=0) + alone
