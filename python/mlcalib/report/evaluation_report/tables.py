"""Every number of the report of an evaluation, as rows of CSV files."""

from mlcalib.report.comparison.groups import GROUPINGS, Group, Mean
from mlcalib.report.comparison.relative_changes import Changes, Model
from mlcalib.report.evaluation_report.changes import groups_of
from mlcalib.report.evaluation_report.compared import Compared
from mlcalib.report.evaluation_report.flips import flipped
from mlcalib.report.page.canvas import Records


def tables(compared: Compared) -> dict[str, Records]:
    """Return the rows of each file, by its name without ending; numbers are unrounded."""
    return {"scores": _scores(compared), **change_tables(compared)}


def change_tables(compared: Compared) -> dict[str, Records]:
    """Return those of the comparison alone: ``changes``, ``groups`` and ``flips``."""
    both = [("tasks", compared.changes), ("perplexity", compared.perplexity)]
    found = [
        (model, kind, changes) for kind, by_model in both for model, changes in by_model.items()
    ]
    return {
        "changes": [
            row for model, kind, each in found for row in _changes(compared, model, kind, each)
        ],
        "groups": [
            row for model, kind, each in found for row in _groups(compared, model, kind, each)
        ],
        "flips": _flips(compared),
    }


def _scores(compared: Compared) -> Records:
    rows = [
        {"label": compared.labels[model], **row.record(), "missing": ""}
        for (model, *_), row in compared.scores.items()
    ]
    rows += [
        {
            "label": compared.labels.get(model, ""),
            **dict(zip(("model", "method", "calibration"), model, strict=True)),
            "language": code,
            "task": task,
            "metric": metric,
            "missing": why,
        }
        for (model, task, code, metric), why in compared.missing.items()
    ]
    return rows


def _changes(compared: Compared, model: Model, kind: str, changes: Changes) -> Records:
    rows = []
    averages = [("average", changes.averages)] if kind == "tasks" else []
    for task, by_language in [*changes.cells.items(), *averages]:
        for code, change in by_language.items():
            rows.append(
                {
                    "label": compared.labels[model],
                    "task": task,
                    "metric": changes.metrics.get(task),
                    "language": code,
                    **{name: grouping(code) for name, grouping in GROUPINGS.items()},
                    "change": change.value,
                    "change_low": change.low,
                    "change_high": change.high,
                    "tasks": change.tasks,
                    "n": change.n or None,
                    "test": change.test,
                    "p_holm": change.p_float,
                    "against_english": change.against_english,
                    "against_english_p_holm": change.p_english,
                    "worse_than_english": change.worse_than_english,
                    "missing": change.missing,
                }
            )
    return rows


def _groups(compared: Compared, model: Model, kind: str, changes: Changes) -> Records:
    rows = []
    for grouping, group in groups_of(changes):
        means = [*group.tasks.items()]
        means += [("average", group.average)] if kind == "tasks" else []
        for task, mean in means:
            rows.append(_group(compared.labels[model], grouping, group, task, mean))
    return rows


def _group(label: str, grouping: str, group: Group, task: str, mean: Mean) -> dict[str, object]:
    return {
        "label": label,
        "grouping": grouping,
        "group": group.name,
        "languages": " ".join(group.languages),
        "task": task,
        "mean_change": mean.value,
        "n": mean.n,
        "of": len(group.languages),
        "wins": group.wins,
        "losses": group.losses,
        "ties": group.ties,
        "worse_than_english": " ".join(group.worse_than_english),
    }


def _flips(compared: Compared) -> Records:
    return [
        {
            "label": compared.labels[model],
            "task": task,
            "language": code,
            **each.flips._asdict(),
            "mcnemar_p": each.p,
            "mcnemar_p_holm": each.adjusted,
        }
        for (task, model, code), each in flipped(compared).items()
    ]
