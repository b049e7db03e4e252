"""Answers that went from right to wrong and from wrong to right."""

from dataclasses import dataclass

from mlcalib.report.comparison.items import answers
from mlcalib.report.comparison.relative_changes import Model
from mlcalib.report.evaluation_report.compared import Compared
from mlcalib.report.evaluation_report.scores import missing
from mlcalib.report.page.colours import diverging, faded
from mlcalib.report.page.document import MISSING, Beside, Block, Cell, Paragraph, Row, Table
from mlcalib.report.page.words import full_name, head, probability
from mlcalib.results.flips import Flips
from mlcalib.results.flips import flips as count_flips
from mlcalib.results.significance import holm, mcnemar

NOTE = (
    "\u2212: items that the float model had right and the model has wrong. +: the reverse. "
    "Accuracy hides those that cancel. Small: the share of items that flipped, and p of McNemar's "
    "exact test, after Holm's correction for the languages of the task and model. Grey italics: "
    "p ≥ 0.05."
)

Key = tuple[str, Model, str]


@dataclass(frozen=True)
class Flipped:
    """Flips of one task, model and language.

    Attributes:
        flips: how many.
        p: McNemar's.
        adjusted: the same after Holm's correction for the languages of the task and model.
    """

    flips: Flips
    p: float
    adjusted: float


def flipped(compared: Compared) -> dict[Key, Flipped]:
    """Return (task, model, language) → flips, of tasks whose items are right or wrong."""
    found: dict[Key, Flipped] = {}
    for task, metric in compared.metrics.items():
        for model in compared.others:
            pairs = {}
            for code in compared.languages:
                old, new = (
                    compared.items.get((each, task, code, metric))
                    for each in (compared.baseline, model)
                )
                if old is None or new is None:
                    continue
                if (pair := answers(old, new)) is not None:
                    pairs[code] = pair
            p_values = {code: mcnemar(*pair) for code, pair in pairs.items()}
            for code, p in holm(p_values).items():
                before, after = (side.tolist() for side in pairs[code])
                counts = count_flips(before, after)
                found[task, model, code] = Flipped(counts, p_values[code], p)
    return found


def flips(compared: Compared) -> list[Block]:
    """Return a table of languages × models for each task that has answers; nothing if none has."""
    found = flipped(compared)
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    if not tasks:
        return []
    tables = [_table(compared, task, found) for task in tasks]
    return [Paragraph(NOTE, "note"), Beside(tables)]


def _table(compared: Compared, task: str, found: dict[Key, Flipped]) -> Table:
    models = list(dict.fromkeys(model for name, model, _ in found if name == task))
    mine = [each for (name, _, _), each in found.items() if name == task]
    end = max((abs(_balance(each.flips)) for each in mine), default=1.0) or 1.0
    rows: list[Row] = []
    for code in compared.languages:
        counts = {
            found[task, model, code].flips.n for model in models if (task, model, code) in found
        }
        rows.append(
            [
                head(code),
                " / ".join(f"{count:,}" for count in sorted(counts)),
                *(_cell(compared, task, model, code, found, end) for model in models),
            ]
        )
    names = [compared.labels[model] for model in models]
    return Table(f"{task}: flips; McNemar", ["language", "n", *names], rows, heat=True)


def _balance(flips: Flips) -> float:
    return (flips.right_to_wrong - flips.wrong_to_right) / flips.n


def _cell(
    compared: Compared,
    task: str,
    model: Model,
    code: str,
    found: dict[Key, Flipped],
    end: float,
) -> Cell:
    each = found.get((task, model, code))
    if each is None:
        metric = compared.metrics[task]
        scored = compared.row(model, task, code, metric)
        why = compared.why(model, task, code) or ("no items" if scored else MISSING)
        return missing(why)
    lost, gained, n = each.flips
    colour = diverging(_balance(each.flips) / end)
    grey = each.adjusted >= 0.05
    p = probability(each.adjusted)
    return Cell(
        f"\u2212{lost} +{gained}",
        f"{100 * (lost + gained) / n:.0f} %, {p}",
        colour=faded(colour) if grey else colour,
        title=f"{full_name(code)}, {compared.labels[model]}, {task}: of {n:,} items {lost} went "
        f"wrong and {gained} right; McNemar {probability(each.p)}, after Holm {p}",
        grey=grey,
    )
