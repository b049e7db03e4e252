"""Relative changes against the first model: the tables of arXiv 2407.03211, a heat map each."""

from collections.abc import Mapping

from mlcalib.report.comparison.groups import DEFINITION, GROUPINGS, MARK, Group, Mean, grouped
from mlcalib.report.comparison.items import sign
from mlcalib.report.comparison.relative_changes import ENGLISH, Change, Changes, Model
from mlcalib.report.evaluation_report.compared import Compared
from mlcalib.report.evaluation_report.scores import missing
from mlcalib.report.page.colours import diverging, faded
from mlcalib.report.page.document import (
    Beside,
    Block,
    Cell,
    Details,
    Paragraph,
    Plot,
    Row,
    Scale,
    Table,
)
from mlcalib.report.page.words import bounds, full_name, head, probability, signed
from mlcalib.results.significance import Difference

LEGEND = (
    "Per cent of the float model's score; small: 95 % interval, and n, the items or documents "
    f"behind it. {MARK}: significantly worse than English's change. Grey italics: not "
    "significantly different from no change, or not tested. Rest the pointer on a cell for p."
)
Found = Mapping[Model, Changes]


def changes(compared: Compared, found: Found, plot: str | None) -> list[Block]:
    """Return all tables of the relative changes of several models on the same tasks.

    Args:
        compared: the models.
        found: model → changes.
        plot: name of the figure; None where there is none.
    """
    first = next(iter(found.values()))
    blocks: list[Block] = [Paragraph(DEFINITION, "note"), Paragraph(first.tests, "note")]
    blocks += [Paragraph(LEGEND, "note"), scale(_end(found))]
    several = len(first.cells) > 1
    table = _averages(compared, found, several)
    if plot is None:
        blocks.append(table)
    else:
        caption = f"{_what(first)}, %; bars: 95 % intervals."
        blocks.append(Beside([table, Plot(plot, caption)]))
    blocks.append(Beside([_groups(compared, found), _counts(compared, found)]))
    for model, each in found.items():
        name = compared.labels[model]
        if several:
            blocks.append(_by_task(each, name, _end(found)))
            blocks.append(
                Details(
                    f"{name}: groups, task by task",
                    [_group_tasks(each, kind) for kind in GROUPINGS],
                )
            )
        blocks.append(Details(f"{name}: every test", [_tests(each, name)]))
    return blocks


def scale(end: float) -> Scale:
    """Return what colours mean."""
    steps = [(diverging(-at / 4), signed(end * at / 4, 1)) for at in range(-4, 5)]
    return Scale(steps, "relative change, per cent (the same scale for all models)")


def _what(changes: Changes) -> str:
    [task, *more] = changes.cells
    if more:
        return "Relative change, average over the tasks"
    turned = " (sign reversed: below 0 is worse)" if sign(changes.metrics[task]) < 0 else ""
    return f"Relative change of {task}{turned}"


def _end(found: Found) -> float:
    """Return the change at which colours end."""
    values = [
        abs(change.value)
        for each in found.values()
        for row in [*each.cells.values(), each.averages]
        for change in row.values()
        if change.value is not None
    ]
    return max(values, default=1.0) or 1.0


def _averages(compared: Compared, found: Found, several: bool) -> Table:
    """Languages × models: the average over tasks, or the only task."""
    first, end = next(iter(found.values())), _end(found)
    rows: list[Row] = []
    for code in first.averages:
        cells = [
            _cell(each.averages[code], code, compared.labels[model], end, len(each.cells))
            for model, each in found.items()
        ]
        rows.append([head(code), *cells])
    [task, *_] = first.cells
    tests = {change.test for each in found.values() for change in each.averages.values()}
    tested = "" if tests == {""} else "; bootstrap" if several else f"; {_test(found, task)}"
    caption = f"{_what(first)}, %{tested}"
    return Table(caption, ["language", *_names(compared, found)], rows, heat=True)


def _test(found: Found, task: str) -> str:
    """Name the tests of a task's cells."""
    names = {change.test for each in found.values() for change in each.cells[task].values()}
    return " or ".join(sorted(name for name in names if name)) or "not tested"


def _names(compared: Compared, found: Found) -> list[str]:
    return [compared.labels[model] for model in found]


def _cell(change: Change, code: str, name: str, end: float, tasks: int) -> Cell:
    if change.value is None:
        return missing(change.missing)
    mark = f" {MARK}" if change.worse_than_english else ""
    partial = f"{change.tasks} of {tasks} tasks" if change.tasks < tasks else ""
    colour = diverging(-change.value / end)
    return Cell(
        signed(change.value, 1) + mark,
        ", ".join(part for part in (_interval(change), _count(change), partial) if part),
        colour=colour if change.significant else faded(colour),
        title=f"{full_name(code)}, {name}: {_said(change)}",
        grey=not change.significant,
    )


def _interval(change: Change) -> str:
    if not change.n or change.value is None:
        return "not tested"
    return bounds(Difference(change.value, change.low, change.high, None, change.n, 0), 1)


def _count(change: Change) -> str:
    return f"n {change.n:,}" if change.n else ""


def _said(change: Change) -> str:
    if change.value is None:
        return change.missing
    text = f"{signed(change.value, 2)} %"
    if not change.n:
        return f"{text}; no items to test"
    text += f"; {change.test} {probability(change.p_float)} after Holm"
    if change.against_english is not None:
        text += (
            f"; {signed(change.against_english, 1)} points against English's change, "
            f"{probability(change.p_english)} after Holm"
        )
    return text


def _by_task(changes: Changes, name: str, end: float) -> Table:
    rows: list[Row] = []
    for code, average in changes.averages.items():
        cells = [_cell(row[code], code, f"{name}, {task}", end, 1) for task, row in _tasks(changes)]
        mean = _cell(average, code, f"{name}, average", end, len(changes.cells))
        rows.append([head(code), *cells, mean])
    header = [
        *(f"{task}, {changes.metrics[task]}; {_test({changes.model: changes}, task)}"
          for task in changes.cells),
        "average; bootstrap",
    ]  # fmt: skip
    return Table(f"{name}: relative change, %", ["language", *header], rows, heat=True)


def _tasks(changes: Changes) -> list[tuple[str, dict[str, Change]]]:
    return list(changes.cells.items())


def _groups(compared: Compared, found: Found) -> Table:
    """Groups × models: means, with W-L-T below."""
    by_model = [groups_of(each) for each in found.values()]
    rows: list[Row] = []
    for (kind, first), *rest in zip(*by_model, strict=True):
        title = f"{kind}: " if kind else ""
        note = f"{len(first.languages)} language{'s' * (len(first.languages) != 1)}"
        row: list[Cell | str] = [Cell(f"{title}{first.name}", note, head=True)]
        for group in (first, *(each for _, each in rest)):
            counts = f"W-L-T {group.wins}-{group.losses}-{group.ties}"
            worse = group.worse_than_english
            counts += f", {len(worse)} {MARK}" if worse else ""
            title = f"significantly worse than English: {', '.join(worse)}" if worse else ""
            mean = _mean(group.average, len(group.languages))
            row.append(Cell(mean, counts, title=title))
        rows.append(row)
    caption = f"{_what(next(iter(found.values())))}: means, %; n {MARK}: languages marked so"
    return Table(caption, ["languages", *_names(compared, found)], rows)


def groups_of(changes: Changes) -> list[tuple[str, Group]]:
    """Return English, all others, and the groups of every grouping with its name."""
    found: list[tuple[str, Group]] = []
    for kind, grouping in GROUPINGS.items():
        for group in grouped(changes, grouping):
            general = group.name in ("English", "all others", "all")
            if not (general and found and any(each.name == group.name for _, each in found)):
                found.append(("" if general else kind, group))
    return found


def _mean(mean: Mean, size: int) -> str:
    if mean.value is None:
        return "no score"
    return signed(mean.value, 1) + (f" of {mean.n}" if mean.n < size else "")


def _group_tasks(changes: Changes, kind: str) -> Table:
    rows: list[Row] = []
    for group in grouped(changes, GROUPINGS[kind]):
        size = len(group.languages)
        means = [_mean(mean, size) for mean in (*group.tasks.values(), group.average)]
        counts = f"{group.wins}-{group.losses}-{group.ties}"
        worse = Cell(", ".join(group.worse_than_english), plain=True)
        rows.append([Cell(group.name, head=True), str(size), *means, counts, worse])
    header = ["languages", "n", *changes.cells, "average", "W-L-T", f"worse than English {MARK}"]
    return Table(f"By {kind}, %", header, rows)


def _counts(compared: Compared, found: Found) -> Table:
    """Models × counts of cells that became better and worse."""
    rows: list[Row] = []
    for model, each in found.items():
        cells = [change for row in each.cells.values() for change in row.values()]
        values = [change.value for change in cells if change.value is not None]
        sure = [change.value for change in cells if change.significant and change.value is not None]
        tested = sum(change.n > 0 for change in cells)
        worse = [code for code, average in each.averages.items() if average.worse_than_english]
        wins, losses = (sum(side * value > 0 for value in values) for side in (1, -1))
        rows.append(
            [
                Cell(compared.labels[model], head=True),
                f"{len(values)} of {len(cells)}",
                f"{wins}-{losses}-{len(values) - wins - losses}",
                f"{sum(value < 0 for value in sure)} of {tested}",
                f"{sum(value > 0 for value in sure)} of {tested}",
                Cell(", ".join(worse) or "none", plain=True),
            ]
        )
    header: Row = [
        "model", "cells with a score", "W-L-T", "significantly worse", "significantly better",
        Cell(f"languages worse than English {MARK}", plain=True),
    ]  # fmt: skip
    caption = "Wins, losses and ties: cells (a task in a language) better, worse, as before"
    return Table(caption, header, rows)


def _tests(changes: Changes, name: str) -> Table:
    several = len(changes.cells) > 1
    rows: list[Row] = []
    for task, row in [*_tasks(changes), *([("average", changes.averages)] if several else [])]:
        for code, change in row.items():
            rows.append([Cell(full_name(code), code, head=True), task, *_tested(change, code)])
    header = [
        "language", "task", "change, %", "95 % interval", "n", "test", "p after Holm",
        "less English's", "p after Holm, bootstrap",
    ]  # fmt: skip
    return Table(f"{name}: every test", header, rows)


def _tested(change: Change, code: str) -> list[Cell | str]:
    if change.value is None:
        return [missing(change.missing, None), *[""] * 6]
    text = signed(change.value, 1) + (f" {MARK}" if change.worse_than_english else "")
    if not change.n:
        return [text, "", "", "not tested", "", "", ""]
    cells: list[Cell | str] = [text, _interval(change), f"{change.n:,}", change.test]
    cells.append(Cell(_p(change.p_float), grey=not change.significant))
    if change.against_english is None:
        return [*cells, "itself" if code == ENGLISH else "not tested", ""]
    return [*cells, signed(change.against_english, 1), _p(change.p_english)]


def _p(p: float | None) -> str:
    return "no p" if p is None else f"{p:.2g}" if p >= 0.0001 else "< 0.0001"
