"""Tasks other than perplexity: changes against the float model, by paired items."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlcalib.report.comparison.items import BOOTSTRAP, MCNEMAR, Items, answers
from mlcalib.report.evaluation_report.changes import changes
from mlcalib.report.evaluation_report.compared import PERPLEXITY, Compared
from mlcalib.report.evaluation_report.fidelity import fidelity
from mlcalib.report.evaluation_report.flips import flips
from mlcalib.report.page.colours import NOTHING, diverging, faded
from mlcalib.report.page.document import (
    MISSING,
    Block,
    Cell,
    Details,
    Paragraph,
    Row,
    Section,
    Table,
)
from mlcalib.report.page.words import bounds, full_name, head, probability, signed
from mlcalib.report.study_report.comparison import Column, Grid
from mlcalib.report.study_report.folder import FLOAT, Evaluation
from mlcalib.report.study_report.results import ModelReport, Results
from mlcalib.results.scores import scale_of
from mlcalib.results.significance import Difference, Floats, holm, mcnemar, paired_mean


@dataclass(frozen=True)
class Change:
    """A task in one language: what quantization changed.

    Attributes:
        base: score of the float model.
        value: score of the checkpoint.
        test: the difference with its interval; None without paired items.
        name: of the test of no difference, ``McNemar`` or ``bootstrap``; empty likewise.
        p: its p, likewise.
    """

    base: float
    value: float
    test: Difference | None
    name: str
    p: float | None


@dataclass(frozen=True)
class TaskGrid:
    """One task and metric × one heat map's variants."""

    task: str
    metric: str
    grid: Grid
    changes: dict[tuple[str, str], Change]

    @cached_property
    def adjusted(self) -> dict[tuple[str, str], float]:
        """(variant, language) → p after Holm, over all cells."""
        return holm({key: each.p for key, each in self.changes.items() if each.p is not None})

    def mean(self, variant: str) -> float | None:
        """Mean change over the languages that have the task."""
        found = [
            each.value - each.base for (name, _), each in self.changes.items() if name == variant
        ]
        return sum(found) / len(found) if found else None


def task_grids(results: Results, report: ModelReport) -> list[TaskGrid]:
    """Return every task and metric × quantizer of the main budget that was measured."""
    float_ = report.model.evaluations.get(FLOAT)
    if float_ is None:
        return []
    named = dict.fromkeys((row.task, row.metric) for row in float_.rows if row.task != PERPLEXITY)
    return [
        TaskGrid(task, metric, grid, _changes(results, report, grid, task, metric))
        for task, metric in named
        for grid in report.main
    ]


def _changes(
    results: Results, report: ModelReport, grid: Grid, task: str, metric: str
) -> dict[tuple[str, str], Change]:
    evaluations = report.model.evaluations
    base = _scores(evaluations[FLOAT], task, metric)
    found = {}
    for column in [*grid.references, *grid.columns]:
        if column.variant not in evaluations:
            continue
        for code, value in _scores(evaluations[column.variant], task, metric).items():
            if code in base:
                pair = [
                    _items(evaluations[name], task, code, score)
                    for name, score in ((FLOAT, base[code]), (column.variant, value))
                ]
                found[column.variant, code] = _change(results, base[code], value, pair)
    return found


def _scores(evaluation: Evaluation, task: str, metric: str) -> dict[str, float]:
    return {
        row.language: row.value
        for row in evaluation.rows
        if (row.task, row.metric) == (task, metric)
    }


def _items(evaluation: Evaluation, task: str, code: str, score: float) -> Floats | None:
    """Return the items behind a score; None where there are none, or they are another metric's.

    NaN is an item that says nothing.
    """
    items = np.array(evaluation.items.get(task, {}).get(code, []), dtype=np.float64)
    known = items[~np.isnan(items)]
    return items if known.size and abs(known.mean() - score) < 1e-6 else None


def _change(results: Results, base: float, value: float, pair: Sequence[Floats | None]) -> Change:
    first, second = pair
    if first is None or second is None:
        return Change(base, value, None, "", None)
    both = ~np.isnan(first) & ~np.isnan(second)
    if not both.any():
        return Change(base, value, None, "", None)
    test = paired_mean(first[both], second[both], resamples=results.resamples, seed=results.seed)
    if (right := answers(Items(first), Items(second))) is not None:
        return Change(base, value, test, MCNEMAR, mcnemar(*right))
    return Change(base, value, test, BOOTSTRAP, test.p)


def tasks(results: Results, report: ModelReport, prefix: str) -> Section | None:
    """Return the tables of all tasks; None where none was planned."""
    planned = [name for name in report.study.plan.evaluation.tasks if name != PERPLEXITY]
    found = task_grids(results, report)
    if not planned and not found:
        return None
    section = Section(f"{prefix}tasks", "Tasks")
    absent = [name for name in planned if not any(each.task.startswith(name) for each in found)]
    if absent:
        section.blocks.append(Paragraph(f"{MISSING}: {', '.join(absent)}.", "warning"))
    if found:
        section.blocks.append(
            Paragraph(
                "Change against the float model: in percentage points where the score is a share "
                "(accuracies, pass rates), else in points of the score (BLEU, chrF++ and ROUGE-L "
                "go from 0 to 100). Grey italics: on the same items McNemar's exact test of right "
                "and wrong answers, or a paired bootstrap of other scores, after Holm's correction "
                "for all cells of the table, gives p ≥ 0.05; or there are no items to test.",
                "note",
            )
        )
    section.blocks += [_table(each) for each in found]
    for quantizer, each in report.compared.items():
        section.blocks += _relative(each, quantizer)
    return section


def _relative(each: Compared, quantizer: str) -> list[Block]:
    """Return the tables of relative changes and of flips, folded."""
    blocks: list[Block] = []
    if each.changes:
        title = f"{quantizer}: relative change, by script, family and resource tier"
        blocks.append(Details(title, changes(each, each.changes, None)))
    if found := flips(each):
        blocks.append(Details(f"{quantizer}: answers that flipped", found))
    return blocks


def perplexities(report: ModelReport, prefix: str) -> Section | None:
    """Return the relative changes of perplexity, all quantizers side by side; None elsewhere."""
    found = [each for each in report.compared.values() if each.perplexity]
    blocks = [block for each in found for block in changes(each, each.perplexity, None)]
    title = "What quantization changed: perplexity"
    return Section(f"{prefix}perplexity", title, blocks) if blocks else None


def fidelities(report: ModelReport, prefix: str) -> Section | None:
    """Return how far predictions moved, a heat map's variants side by side; None if unmeasured."""
    section = Section(f"{prefix}fidelity", "Fidelity: how far predictions moved")
    for quantizer, each in report.compared.items():
        if blocks := fidelity(each):
            several = len(report.compared) > 1
            section.blocks += [Details(quantizer, blocks)] if several else blocks
    return section if section.blocks else None


def _table(each: TaskGrid) -> Block:
    columns = [*each.grid.references, *each.grid.columns]
    end = max((abs(one.value - one.base) for one in each.changes.values()), default=1.0) or 1.0
    scale = scale_of(each.metric)
    rows: list[Row] = []
    for code in each.grid.measured.languages:
        base = next((one.base for (_, known), one in each.changes.items() if known == code), None)
        rows.append(
            [
                head(code),
                "no task" if base is None else _float(base, scale),
                *(_cell(each, column, code, end, base) for column in columns),
            ]
        )
    foot: list[Cell | str] = [Cell("mean of languages with the task", head=True), ""]
    for column in columns:
        mean = each.mean(column.variant)
        foot.append(Cell(MISSING if mean is None else signed(scale * mean, 2)))
    header = ["language", "float", *(column.label for column in columns)]
    caption = f"{each.task}, {each.metric}, {each.grid.quantizer}"
    return Table(caption, header, rows, [foot], heat=True)


def _float(score: float, scale: int) -> str:
    return f"{score:.3f}" if scale == 100 else f"{score:.2f}"


def _cell(each: TaskGrid, column: Column, code: str, end: float, base: float | None) -> Cell:
    one = each.changes.get((column.variant, code))
    if one is None:
        return Cell("no task" if base is None else MISSING, colour=NOTHING, grey=True)
    p = each.adjusted.get((column.variant, code))
    title = f"{full_name(code)}, {column.label}: {one.value:.4f} (float {one.base:.4f})"
    if one.test is not None:
        title += f", {signed(one.test.value, 4)} {bounds(one.test, 4)}, {one.test.n} items, "
        title += f"{one.name} {probability(one.p)}, after Holm {probability(p)}"
    grey = p is None or p >= 0.05
    colour = diverging(-(one.value - one.base) / end)
    return Cell(
        signed(scale_of(each.metric) * (one.value - one.base), 2),
        "no items" if one.test is None else "",
        colour=faded(colour) if grey else colour,
        title=title,
        grey=grey,
    )
