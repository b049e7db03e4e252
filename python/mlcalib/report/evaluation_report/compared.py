"""Models on the same items, the first of which all others are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path

from mlcalib.report.comparison.items import Items
from mlcalib.report.comparison.relative_changes import Changes, Model, relative_changes
from mlcalib.results.rows import ItemScores, Results, Row
from mlcalib.results.scores import label

PERPLEXITY, FIDELITY = "perplexity", "fidelity"

Cell = tuple[Model, str, str, str]
"""Model, task, language and metric."""


@dataclass(frozen=True)
class Compared:
    """Results of several models, each cell once.

    Attributes:
        scores: of every cell.
        items: of those cells that have some.
        missing: (model, task, language, metric or None for the whole task) → why.
        labels: model → what tables call it; the first is compared with.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    scores: dict[Cell, Row]
    items: dict[Cell, Items]
    missing: dict[tuple[Model, str, str, str | None], str]
    labels: dict[Model, str]
    resamples: int
    seed: int

    @cached_property
    def baseline(self) -> Model:
        """The model that all others are compared with."""
        return next(iter(self.labels))

    @cached_property
    def others(self) -> list[Model]:
        """The models that are compared."""
        return [model for model in self.labels if model != self.baseline]

    @cached_property
    def languages(self) -> list[str]:
        """In the order of the rows; English first."""
        found = [code for _, _, code, _ in (*self.scores, *self.missing)]
        return list(dict.fromkeys([*(["en"] if "en" in found else []), *found]))

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Task → the metric that it is compared by, its first; benchmark tasks only."""
        found: dict[str, str] = {}
        for _, task, _, metric in self.scores:
            if task not in (PERPLEXITY, FIDELITY):
                found.setdefault(task, metric)
        return found

    def row(self, model: Model, task: str, code: str, metric: str) -> Row | None:
        """Return a score."""
        return self.scores.get((model, task, code, metric))

    def why(self, model: Model, task: str, code: str, metric: str | None = None) -> str | None:
        """Return why a cell has no score, if that is known.

        What is missing of ``flores`` is missing of ``flores_to_en``, unless there are rows of a
        task of that very name.
        """
        for name in (task, *(each for each in self.unscored if task.startswith(f"{each}_"))):
            for of in (metric, None):
                if reason := self.missing.get((model, name, code, of)):
                    return reason
        return None

    @cached_property
    def unscored(self) -> list[str]:
        """Tasks that are missing somewhere and have no row anywhere."""
        names = dict.fromkeys(task for _, task, _, _ in self.missing)
        return [name for name in names if name not in self.metrics]

    @cached_property
    def changes(self) -> dict[Model, Changes]:
        """Model → relative changes of the benchmark tasks, of the models that have some."""
        return self._changes(self.metrics)

    @cached_property
    def perplexity(self) -> dict[Model, Changes]:
        """Model → relative changes of perplexity, likewise."""
        there = any(task == PERPLEXITY for _, task, _, _ in self.scores)
        return self._changes({PERPLEXITY: "perplexity"} if there else {})

    def _changes(self, metrics: Mapping[str, str]) -> dict[Model, Changes]:
        based = {(task, metric) for model, task, _, metric in self.scores if model == self.baseline}
        metrics = {task: metric for task, metric in metrics.items() if (task, metric) in based}
        rows = [
            row for (_, task, _, metric), row in self.scores.items() if metrics.get(task) == metric
        ]
        measured = {(row.model, row.method, row.calibration) for row in rows}
        items = self._items(metrics)
        absent = (code for _, task, code, _ in self.missing if self._concerns(task, metrics))
        found = {*(row.language for row in rows), *absent}
        return {
            model: relative_changes(
                rows,
                model,
                self.baseline,
                metrics=metrics,
                languages=[code for code in self.languages if code in found],
                items=items,
                missing=self._reasons(model, metrics),
                resamples=self.resamples,
                seed=self.seed,
            )
            for model in self.others
            if model in measured
        }

    def _concerns(self, name: str, metrics: Mapping[str, str]) -> bool:
        """Whether what is missing of a name is missing of one of these tasks."""
        return name in metrics or any(
            name in self.unscored and task.startswith(f"{name}_") for task in metrics
        )

    def _items(self, metrics: Mapping[str, str]) -> dict[Model, dict[str, dict[str, Items]]]:
        found: dict[Model, dict[str, dict[str, Items]]] = {}
        for (model, task, code, metric), items in self.items.items():
            if metrics.get(task) == metric:
                found.setdefault(model, {}).setdefault(task, {})[code] = items
        return found

    def _reasons(self, model: Model, metrics: Mapping[str, str]) -> dict[tuple[str, str], str]:
        reasons = {}
        for task, metric in metrics.items():
            for code in self.languages:
                for each in (self.baseline, model):
                    if reason := self.why(each, task, code, metric):
                        reasons[task, code] = reason
        return reasons


def compare(
    results: Results,
    baseline: Model | None = None,
    labels: Mapping[Model, str] | None = None,
    *,
    resamples: int,
    seed: int,
) -> Compared:
    """Put every result where it belongs.

    Args:
        results: of all models; the same cell may be there twice if it says the same.
        baseline: what to compare with; None for the first model.
        labels: every model → what to call it. Default: method and calibration, and the name where
            these are not enough.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no rows, or two that contradict each other.
    """
    if not results:
        raise ValueError("There are no rows of results to report.")
    scores: dict[Cell, Row] = {}
    for row in results:
        known = scores.setdefault((_model(row), row.task, row.language, row.metric), row)
        if (known.value, known.n) != (row.value, row.n):
            raise ValueError(
                f"{row.model} ({row.method}, {row.calibration}) has {row.metric} of {row.task} in "
                f"'{row.language}' twice: {known.value:g} (n {known.n:,}) and {row.value:g} "
                f"(n {row.n:,}). Report runs of one evaluation only, and give each model a name "
                "of its own."
            )
    items: dict[Cell, Items] = {}
    missing: dict[tuple[Model, str, str, str | None], str] = {}
    for each in results.items:
        if each.missing:
            missing[_model(each), each.task, each.language, each.metric] = each.missing
        elif each.metric is not None:
            cell = (_model(each), each.task, each.language, each.metric)
            items[cell] = Items(
                [nan if value is None else value for value in each.values], each.sizes
            )
    models = list(labels or dict.fromkeys(model for model, *_ in scores))
    first = baseline or models[0]
    named = labels or {model: label(model, models) for model in models}
    order = sorted(models, key=lambda model: model != first)  # the sort is stable
    _check_paired(items, first)
    return Compared(
        scores, items, missing, {model: named[model] for model in order}, resamples, seed
    )


def find_model(results: Sequence[Row], name: str) -> Model:
    """Return the model that goes by a name: its own, or what tables call it.

    Raises:
        ValueError: there is none, or several.
    """
    models = list(dict.fromkeys(map(_model, results)))
    found = [
        model
        for model in models
        if name in (model[0], label(model, models)) or Path(name) == Path(model[0])
    ]
    if len(found) != 1:
        listed = ", ".join(f"{label(model, models)} ({model[0]})" for model in models)
        what = "No model" if not found else f"More than one model ({len(found)})"
        raise ValueError(f"{what} is called '{name}'; there are {listed}.")
    return found[0]


def _check_paired(items: Mapping[Cell, Items], baseline: Model) -> None:
    for (model, task, code, metric), each in items.items():
        base = items.get((baseline, task, code, metric))
        if base is not None and base.sizes != each.sizes:
            raise ValueError(
                f"{model[0]} and {baseline[0]} were scored on other documents of {task} in "
                f"'{code}'; a paired comparison needs the same. Evaluate both on the same text."
            )


def _model(each: Row | ItemScores) -> Model:
    return each.model, each.method, each.calibration
