"""The tables of 2407.03211: relative change by script, language family and resource tier.

After "How Does Quantization Affect Multilingual LLMs?" (arXiv 2407.03211), which reports scores
relative to the unquantized model, in per cent, per language and for languages in Latin and other
scripts. ``DEFINITION`` says what is done here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mlcalib.languages import language
from mlcalib.report.comparison.relative_changes import ENGLISH, NOT_MEASURED, Change, Changes
from mlcalib.report.tables.perplexity import Table

MARK = "*"

DEFINITION = (
    "Relative change against the float model: 100 · (quantized - float) / float, in per cent, per "
    "task and language; where lower is better its sign is reversed, so that below 0 is always "
    "worse. A language's average is the mean over its tasks; a group's value is the mean over its "
    "languages, English apart; each counts alike. 'of N' stands behind a mean that is not over all "
    f"tasks of the table or all languages of the group. {MARK} significantly worse than English's "
    "change. W-L-T: in how many cells (a task in a language) it became better, became worse, "
    "stayed the same."
)


@dataclass(frozen=True)
class Mean:
    """A mean over the languages of a group.

    Attributes:
        value: per cent; None where no language has the task.
        n: languages that it is over.
    """

    value: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Languages that have something in common.

    Attributes:
        name: what.
        languages: codes; English is in no group but its own.
        tasks: task → mean change.
        average: mean of the languages' averages over tasks.
        wins: cells (a task in a language) that became better.
        ties: that stayed the same.
        losses: that became worse.
        worse_than_english: languages whose average is significantly worse than English's.
    """

    name: str
    languages: list[str]
    tasks: dict[str, Mean]
    average: Mean
    wins: int
    ties: int
    losses: int
    worse_than_english: list[str]


def by_script(code: str) -> str:
    """Return ``Latin script`` or ``other scripts``; ``no script`` of source code and the like."""
    script = language(code).script
    return (
        "no script" if script is None else "Latin script" if script == "Latn" else "other scripts"
    )


def by_family(code: str) -> str:
    """Return the language family."""
    return language(code).family or "no family"


def by_tier(code: str) -> str:
    """Return the resource tier (Joshi et al. 2020: 0 has hardly any text, 5 the most)."""
    tier = language(code).tier
    return "no tier" if tier is None else f"tier {tier}"


GROUPINGS: dict[str, Callable[[str], str]] = {
    "script": by_script,
    "family": by_family,
    "resource tier": by_tier,
}


def grouped(changes: Changes, grouping: Callable[[str], str]) -> list[Group]:
    """Return English, all other languages, and these by what they have in common."""
    codes = list(changes.averages)
    others = [code for code in codes if code != ENGLISH]
    by_name: dict[str, list[str]] = {}
    for code in others:
        by_name.setdefault(grouping(code), []).append(code)
    groups = [_group(changes, "English", [ENGLISH])] if ENGLISH in codes else []
    if others:
        groups.append(_group(changes, "all others" if groups else "all", others))
    return groups + [_group(changes, name, by_name[name]) for name in sorted(by_name)]


def language_table(changes: Changes) -> Table:
    """Return the relative change per language (down) and task (across), and their average.

    Where it was tested there follow, of the average: n (items of all its tasks), the p of no
    change, and the difference from English's change with its p, all by the bootstrap.
    """
    tasks = list(changes.cells)
    tested = any(average.n for average in changes.averages.values())
    table = [["language", *(f"{task} ({changes.metrics[task]})" for task in tasks), "average"]]
    if tested:
        table[0] += ["n", "p, bootstrap", "against English", "p, bootstrap"]
    for code, average in changes.averages.items():
        cells = [_cell(changes.cells[task][code]) for task in tasks]
        partial = average.value is not None and average.tasks < len(tasks)
        table.append([code, *cells, _cell(average) + (f" of {average.tasks}" if partial else "")])
        if tested:
            table[-1] += _tests(average)
    return table


def group_table(groups: Sequence[Group]) -> Table:
    """Return mean relative changes per group (down) and task (across)."""
    tasks = list(groups[0].tasks) if groups else []
    table = [["languages", "n", *tasks, "average", "W-L-T", f"worse than English {MARK}"]]
    for group in groups:
        size = len(group.languages)
        means = [_mean(mean, size) for mean in (*group.tasks.values(), group.average)]
        counts = f"{group.wins}-{group.losses}-{group.ties}"
        worse = ", ".join(group.worse_than_english)
        table.append([group.name, str(size), *means, counts, worse])
    return table


def as_data(changes: Changes) -> dict[str, Any]:
    """Return changes and all groupings as JSON types."""
    return {
        "definition": DEFINITION,
        **asdict(changes),
        "groups": {
            name: [asdict(group) for group in grouped(changes, grouping)]
            for name, grouping in GROUPINGS.items()
        },
    }


def _group(changes: Changes, name: str, codes: list[str]) -> Group:
    cells: Mapping[str, list[Change]] = {
        task: [row[code] for code in codes] for task, row in changes.cells.items()
    }
    values = [cell.value for row in cells.values() for cell in row if cell.value is not None]
    averages = [changes.averages[code] for code in codes]
    return Group(
        name,
        codes,
        {task: _over(row) for task, row in cells.items()},
        _over(averages),
        wins=sum(value > 0 for value in values),
        ties=sum(value == 0 for value in values),
        losses=sum(value < 0 for value in values),
        worse_than_english=[code for code in codes if changes.averages[code].worse_than_english],
    )


def _over(cells: Sequence[Change]) -> Mean:
    values = [cell.value for cell in cells if cell.value is not None]
    return Mean(fmean(values) if values else None, len(values))


def _cell(change: Change) -> str:
    if change.value is None:
        return change.missing
    return f"{change.value:+z.1f}" + (MARK if change.worse_than_english else "")


def _tests(change: Change) -> list[str]:
    if not change.n:
        return ["not tested", "", "", ""]
    against = change.against_english
    points = "" if against is None else f"{against:+z.1f}"
    return [f"{change.n:,}", _p(change.p_float), points, _p(change.p_english)]


def _p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _mean(mean: Mean, size: int) -> str:
    if mean.value is None:
        return NOT_MEASURED
    return f"{mean.value:+z.1f}" + (f" of {mean.n}" if mean.n < size else "")
