"""What a reader sees first: which differences are real; and what was run."""

from mlcalib.report.comparison.relative_changes import ENGLISH, Change, Changes, Model
from mlcalib.report.evaluation_report.compared import FIDELITY, PERPLEXITY, Compared
from mlcalib.report.evaluation_report.fidelity import behind
from mlcalib.report.page.document import Block, Paragraph, Section
from mlcalib.report.page.words import listed, signed, spoken

_SHOWN = 3
"""Cells that are named; the tables have the others."""


def answer(compared: Compared) -> Section:
    """Return the section that says which differences are more than chance."""
    section = Section("answer", "Which differences are real")
    if compared.others:
        base = f"`{compared.labels[compared.baseline]}`"
        section.blocks.append(Paragraph(f"Against {base} (`{compared.baseline[0]}`)."))
    if not compared.others:
        only = f"There is one model only, `{compared.baseline[0]}`: nothing to compare it with."
        section.blocks.append(Paragraph(only, "lead"))
    for model in compared.others:
        section.blocks.append(Paragraph(_sentences(compared, model), "lead"))
    if not compared.items and compared.others:
        section.blocks.append(
            Paragraph(
                "**Nothing is tested**: there are scores but no items. `mlcalib evaluate --out "
                "rows.jsonl` writes them to `rows.items`, beside the rows.",
                "warning",
            )
        )
    if compared.baseline[1] != "float" and compared.others:
        section.blocks.append(
            Paragraph(
                f"All are compared with `{compared.baseline[0]}`, which is not a float model but "
                f"`{compared.labels[compared.baseline]}`; `--float NAME` chooses another.",
                "warning",
            )
        )
    return section


def run(compared: Compared) -> Section:
    """Return the section that says what was run, and how it was tested."""
    blocks: list[Block] = [Paragraph(_run(compared)), Paragraph(_how(compared))]
    return Section("run", "What was run", blocks)


def _sentences(compared: Compared, model: Model) -> str:
    parts = [f"**{compared.labels[model]}**:"]
    tasks, perplexity = compared.changes.get(model), compared.perplexity.get(model)
    if tasks is not None:
        parts += _tasks(tasks)
    if perplexity is not None:
        parts += _perplexity(perplexity)
    if tasks is None and perplexity is None:
        parts.append(f"no score that `{compared.labels[compared.baseline]}` has too.")
    if sentence := _divergence(compared, model):
        parts.append(sentence)
    return " ".join(parts)


def _tasks(changes: Changes) -> list[str]:
    cells = {
        (task, code): change
        for task, row in changes.cells.items()
        for code, change in row.items()
        if change.value is not None
    }
    tested = [key for key, change in cells.items() if change.n]
    if not tested:
        return [f"{len(cells)} task scores, none of which can be tested."]
    real = [key for key in tested if cells[key].significant]
    worse = sorted(
        (key for key in real if _value(cells[key]) < 0), key=lambda key: _value(cells[key])
    )
    better = sorted(
        (key for key in real if _value(cells[key]) > 0), key=lambda key: -_value(cells[key])
    )
    text = (
        f"{len(worse) or 'none'} of {len(tested)} tested task scores {_is(len(worse))} worse than "
        f"the float model's beyond chance{_most(worse, cells)}, {len(better) or 'none'} better"
        f"{_most(better, cells)}"
    )
    left = len(tested) - len(real)
    text += f"; the other {left} differences may be chance." if left and real else "."
    return [text, *_against_english(changes, "On the average over tasks, hurt")]


def _most(keys: list[tuple[str, str]], cells: dict[tuple[str, str], Change]) -> str:
    """Name the cells that changed most."""
    named = [
        f"{task} in {spoken(code)} {_percent(cells[task, code])}" for task, code in keys[:_SHOWN]
    ]
    if not named:
        return ""
    return f" ({'most ' if len(keys) > _SHOWN else ''}{', '.join(named)})"


def _against_english(changes: Changes, start: str) -> list[str]:
    """Say which languages are hurt more than English."""
    found = changes.averages
    if not any(each.against_english is not None for each in found.values()):
        return []
    marked = sorted(
        (code for code in found if found[code].worse_than_english),
        key=lambda code: _value(found[code]),
    )
    others = len(found) - (ENGLISH in found)
    if not marked:
        return [f"{start} more than English beyond chance: none of {others} languages."]
    names = listed([spoken(code) for code in marked])
    which = "all others" if len(marked) == others > _SHOWN else names
    return [f"{start} more than English: {which}."]


def _perplexity(changes: Changes) -> list[str]:
    cells = {code: each for code, each in changes.averages.items() if each.value is not None}
    if not any(each.n for each in cells.values()):
        return []
    real = [code for code, each in cells.items() if each.significant]
    worse = [code for code in real if _value(cells[code]) < 0]
    text = f"Perplexity rose beyond chance in {len(worse)} of {len(cells)} languages"
    if worse:
        code = min(worse, key=lambda code: _value(cells[code]))
        text += f", most in {spoken(code)} ({signed(-_value(cells[code]), 1)}\u00a0%)"
    if fell := [spoken(code) for code in real if code not in worse]:
        text += f", and fell in {listed(fell)}"
    return [f"{text}.", *_against_english(changes, "By perplexity, hurt")]


def _is(count: int) -> str:
    return "is" if count < 2 else "are"


def _value(change: Change) -> float:
    return change.value or 0.0


def _percent(change: Change) -> str:
    return f"{signed(_value(change), 1)}\u00a0%"


def _divergence(compared: Compared, model: Model) -> str:
    rows = {
        code: row
        for code in compared.languages
        if (row := compared.row(model, FIDELITY, code, "kl")) is not None
    }
    if not rows:
        return ""
    mean = sum(row.value for row in rows.values()) / len(rows)
    worst = max(rows, key=lambda code: rows[code].value)
    text = (
        f"KL from the float model: {mean:.3g} nats on the mean of {len(rows)} languages, most in "
        f"{spoken(worst)} ({rows[worst].value:.3g})"
    )
    nearest = [found for code in rows if (found := behind(compared, code)) is not None]
    if nearest:
        best = sum(found[0] == model for found in nearest)
        text += f"; the least of the models in {best} of {len(nearest)}"
    return f"{text}."


def _run(compared: Compared) -> str:
    models = [
        f"`{label}` is `{name}`" + ("" if calibration == "none" else f" ({calibration})")
        for (name, _, calibration), label in compared.labels.items()
    ]
    tasks = dict.fromkeys(task for _, task, _, _ in compared.scores)
    tokens = sorted(
        {row.n for (_, task, _, _), row in compared.scores.items() if task == PERPLEXITY}
    )
    versions = dict.fromkeys(row.versions for row in compared.scores.values() if row.versions)
    scored = f" of {' / '.join(f'{each:,}' for each in tokens)} tokens a language" if tokens else ""
    named_tasks = [f"`{task}`{scored if task == PERPLEXITY else ''}" for task in tasks]
    seeds = sorted({row.seed for row in compared.scores.values() if row.seed is not None})
    drawn = f" Seeds of standard errors: {', '.join(map(str, seeds))}." if seeds else ""
    return (
        f"**Models.** {'; '.join(models)}. Compared with the first. **Tasks.** "
        f"{listed(named_tasks)}, in {len(compared.languages)} languages.{drawn} **Versions.** "
        f"{'; or '.join(versions) or 'not recorded'}."
    )


def _how(compared: Compared) -> str:
    return (
        "**How sure.** Every test is between models on the same items or documents. Intervals hold "
        f"95 %: a paired bootstrap over items or documents, {compared.resamples:,} resamples, seed "
        f"{compared.seed}, widened as Student's t where they are few. Right and wrong answers of a "
        "task are tested by McNemar's exact test, everything else by the bootstrap. Real, or "
        "significant, is p < 0.05 after Holm's correction for the number of languages compared, "
        "of each task and model by itself: with several tasks and models, some will pass by chance."
    )
