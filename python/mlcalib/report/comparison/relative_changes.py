"""Relative change of scores against the float model, per task and language, with tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mlcalib.languages import language
from mlcalib.languages import languages as every_language
from mlcalib.report.comparison.items import (
    BOOTSTRAP,
    Alone,
    Items,
    of_no_change,
    relative_change,
    sign,
)
from mlcalib.results.rows import Row
from mlcalib.results.significance import Part, combine, holm

ENGLISH = "en"
NO_TASK, NOT_MEASURED, ZERO = "no task", "not measured", "float is 0"

Model = tuple[str, str, str]
"""Model, method and calibration, as in a row of results."""


@dataclass(frozen=True)
class Change:
    """The relative change of one task in one language, or of a language's average.

    Attributes:
        value: per cent, below 0 is worse; None where ``missing`` says why.
        missing: ``no task``, ``not measured``, ``float is 0`` or another reason.
        tasks: how many tasks it is of.
        n: items behind its tests; 0 where it was not tested.
        low: lower end of its 95 % interval by the bootstrap; None without items, and where a
            resample gives the float model a score of 0, which leaves McNemar's test alone.
        high: upper end, likewise.
        test: of no change, ``McNemar`` or ``bootstrap``; empty without a test.
        p_float: of no change, adjusted (Holm) for the number of languages; None without a test.
        p_english: of the same change as English's, likewise.
        against_english: difference from English's change on the same tasks, in points, likewise.
    """

    value: float | None
    missing: str = ""
    tasks: int = 1
    n: int = 0
    low: float | None = None
    high: float | None = None
    test: str = ""
    p_float: float | None = None
    p_english: float | None = None
    against_english: float | None = None

    @property
    def significant(self) -> bool:
        """Whether it is significantly different from no change: p below 0.05."""
        return self.p_float is not None and self.p_float < 0.05

    @property
    def worse_than_english(self) -> bool:
        """Whether it is significantly worse than English's change: p below 0.05."""
        if self.p_english is None or self.against_english is None:
            return False
        return self.p_english < 0.05 and self.against_english < 0


@dataclass(frozen=True)
class Changes:
    """One quantized model against the float one.

    Attributes:
        model: the quantized model.
        baseline: the float model.
        metrics: task → metric.
        cells: task → language → change.
        averages: language → the mean change of its tasks.
        tests: how it was tested, in words.
    """

    model: Model
    baseline: Model
    metrics: dict[str, str]
    cells: dict[str, dict[str, Change]]
    averages: dict[str, Change]
    tests: str


def relative_changes(
    rows: Sequence[Row],
    model: Model,
    baseline: Model | None = None,
    *,
    metrics: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
    items: Mapping[Model, Mapping[str, Mapping[str, Items]]] | None = None,
    missing: Mapping[tuple[str, str], str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Changes:
    """Compare a quantized model with the float one.

    Args:
        rows: of both; rows of others are left out.
        model: the quantized model.
        baseline: the float one; None for the only model whose method is ``float``.
        metrics: task → metric; tasks that it does not name are left out. None for all tasks, which
            must then have one metric each.
        languages: codes, in the order wanted; None for those of the rows.
        items: model → task → language → items, the same ones in both models. A cell without items
            in both is not tested.
        missing: (task, language) → why there is no score, where it is known; else it is ``no task``
            or ``not measured``.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no such model, no or several float models, a task with several metrics or
            without the one named, or other items in the two models.
    """
    baseline = baseline or _float_model(rows)
    present = list(dict.fromkeys(map(_model, rows)))
    for each in (model, baseline):
        if each not in present:
            raise ValueError(f"There is no row of {each}; there are rows of {present}.")
    chosen = _metrics(rows, metrics)
    scores = {(_model(row), row.task, row.language, row.metric): row.value for row in rows}
    cells: dict[str, dict[str, Change]] = {task: {} for task in chosen}
    parts: dict[tuple[str, str], Part] = {}
    alone: dict[tuple[str, str], Alone] = {}
    given = items or {}
    for task, metric in chosen.items():
        for code in languages or dict.fromkeys(row.language for row in rows):
            old, new = (scores.get((each, task, code, metric)) for each in (baseline, model))
            reason = (missing or {}).get((task, code)) or _reason(task, code)
            cell = cells[task][code] = _change(old, new, metric, reason)
            pair = [given.get(each, {}).get(task, {}).get(code) for each in (baseline, model)]
            if cell.value is not None and pair[0] is not None and pair[1] is not None:
                where = f"{task} in '{code}'"
                part = relative_change(
                    pair[0], pair[1], metric, where, resamples, [seed, len(parts)]
                )
                if part is not None:
                    parts[task, code] = part
                alone[task, code] = of_no_change(pair[0], pair[1], part, seed)
    for task, by_code in cells.items():
        for code, cell in by_code.items():
            by_code[code] = _tested(cell, code, [task], parts, seed, alone.get((task, code)))
        cells[task] = _adjusted(by_code)
    averages = {}
    for code in next(iter(cells.values()), {}):
        tasks = [task for task in cells if cells[task][code].value is not None]
        values = [cells[task][code].value for task in tasks]
        mean = fmean(value for value in values if value is not None) if values else None
        average = Change(mean, "" if tasks else _why([cells[task][code] for task in cells]))
        average = replace(average, tasks=len(tasks))
        averages[code] = _tested(average, code, tasks, parts, seed)
    tested = any(each.test for each in alone.values())
    tests = _describe(resamples, seed) if tested else "Not tested: there are no items, only scores."
    return Changes(model, baseline, chosen, cells, _adjusted(averages), tests)


def _model(row: Row) -> Model:
    return row.model, row.method, row.calibration


def _float_model(rows: Sequence[Row]) -> Model:
    found = list(dict.fromkeys(_model(row) for row in rows if row.method == "float"))
    if len(found) != 1:
        raise ValueError(
            f"There are {len(found)} float models in the results; say which one to compare with "
            "(baseline=), or add its rows."
        )
    return found[0]


def _metrics(rows: Sequence[Row], wanted: Mapping[str, str] | None) -> dict[str, str]:
    there: dict[str, list[str]] = {}
    for row in rows:
        if row.metric not in there.setdefault(row.task, []):
            there[row.task].append(row.metric)
    if wanted is None:
        for task, names in there.items():
            if len(names) > 1:
                raise ValueError(
                    f"The task '{task}' has the metrics {', '.join(names)}; say which one to "
                    f"compare (metrics={{'{task}': '{names[0]}', …}})."
                )
        return {task: names[0] for task, names in there.items()}
    for task, metric in wanted.items():
        if metric not in there.get(task, []):
            listed = "; ".join(f"{name}: {', '.join(those)}" for name, those in there.items())
            raise ValueError(f"There is no '{metric}' of the task '{task}'. There are {listed}.")
    return dict(wanted)


def _reason(task: str, code: str) -> str:
    known = any(task in entry.benchmarks for entry in every_language())
    return NO_TASK if known and task not in language(code).benchmarks else NOT_MEASURED


def _change(old: float | None, new: float | None, metric: str, reason: str) -> Change:
    if old is None or new is None:
        return Change(None, reason)
    if old == 0:
        return Change(None, ZERO)
    return Change(100 * (new - old) / old * sign(metric))


def _tested(
    change: Change,
    code: str,
    tasks: Sequence[str],
    parts: Mapping[tuple[str, str], Part],
    seed: int,
    alone: Alone | None = None,
) -> Change:
    """Add the tests of a mean change over tasks, before they are adjusted."""
    if alone is not None:
        change = replace(change, n=alone.n, test=alone.test, p_float=alone.p)
    if not tasks or any((task, code) not in parts for task in tasks):
        return change
    mean = combine([_scaled(parts[task, code], 1 / len(tasks)) for task in tasks], seed)
    change = replace(change, low=mean.low, high=mean.high)
    if alone is None:
        change = replace(change, n=mean.n, test=BOOTSTRAP, p_float=mean.p)
    common = [task for task in tasks if (task, ENGLISH) in parts]
    if code == ENGLISH or not common:
        return change
    both = [
        _scaled(parts[task, each], sign / len(common))
        for task in common
        for each, sign in ((code, 1), (ENGLISH, -1))
    ]
    difference = combine(both, seed)
    return replace(change, p_english=difference.p, against_english=difference.value)


def _scaled(part: Part, weight: float) -> Part:
    return Part(part.value * weight, part.deviations * weight, part.n)


def _adjusted(row: Mapping[str, Change]) -> dict[str, Change]:
    """Adjust the p-values of all languages for their number."""
    to_float = holm({code: each.p_float for code, each in row.items() if each.p_float is not None})
    to_english = holm(
        {code: each.p_english for code, each in row.items() if each.p_english is not None}
    )
    return {
        code: replace(each, p_float=to_float.get(code), p_english=to_english.get(code))
        for code, each in row.items()
    }


def _why(cells: Sequence[Change]) -> str:
    return NO_TASK if all(cell.missing == NO_TASK for cell in cells) else NOT_MEASURED


def _describe(resamples: int, seed: int) -> str:
    return (
        "Tests: against float, McNemar's exact test for the right and wrong answers of a task, and "
        f"a bootstrap over items or documents ({resamples:,} resamples, seed {seed}, paired "
        "between the models) for other scores and for averages; against English, that bootstrap of "
        "the "
        "difference between relative changes, with each language drawn by itself. p is two-sided "
        "and adjusted (Holm) for the number of languages. What is tested is the mean of the items; "
        "a corpus score such as chrF++ can differ from it."
    )
