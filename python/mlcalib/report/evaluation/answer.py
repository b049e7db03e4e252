"""What a reader sees first: which differences are real; and what was run."""

from mlcalib.report.evaluation.compared import FIDELITY, PERPLEXITY, Compared
from mlcalib.report.evaluation.fidelity import behind
from mlcalib.report.page.document import Block, Paragraph, Section
from mlcalib.report.page.words import listed, named, signed
from mlcalib.report.relative_changes import Change, Changes, Model

_SHOWN = 6
"""Cells that are named; the tables have the others."""


def answer(compared: Compared) -> Section:
    """Return the section that says which differences are more than chance."""
    section = Section("answer", "Which differences are real")
    if not compared.others:
        only = f"There is one model only, `{compared.baseline[0]}`: nothing to compare it with."
        section.blocks.append(Paragraph(only, "lead"))
    for model in compared.others:
        section.blocks.append(Paragraph(_sentences(compared, model), "lead"))
    if not compared.items and compared.others:
        section.blocks.append(
            Paragraph(
                "**Nothing is tested**: there are scores but no items. `mlcalib evaluate --out "
                "rows.jsonl` writes them to `rows.items.jsonl`, beside the rows.",
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
    tested = {key: change for key, change in cells.items() if change.n}
    if not tested:
        return [f"{len(cells)} task scores, none of which can be tested without items."]
    real = {key: change for key, change in tested.items() if change.significant}
    parts = [
        f"of {len(tested)} tested task scores {len(real)} differ{'s' * (len(real) == 1)} from the "
        "float model's by more than chance explains" + (f": {_split(real)}." if real else ".")
    ]
    averages = {code: each for code, each in changes.averages.items() if each.significant}
    if len(changes.cells) > 1:
        worse = _places({code: each for code, each in averages.items() if (each.value or 0) < 0})
        better = _places({code: each for code, each in averages.items() if (each.value or 0) > 0})
        parts.append(
            f"Averaged over tasks, {worse or 'no language'} is really worse"
            + (f", {better} really better." if better else ".")
        )
    marked = {code: each for code, each in changes.averages.items() if each.worse_than_english}
    if "en" in changes.averages and len(changes.averages) > 1:
        parts.append(
            f"Hurt more than English: {_places(marked)}."
            if marked
            else "No language is hurt more than English beyond chance."
        )
    return parts


def _split(real: dict[tuple[str, str], Change]) -> str:
    """Name the cells that became worse, then those that became better."""
    parts = []
    for word, sign in (("worse", -1), ("better", 1)):
        mine = {key: each for key, each in real.items() if sign * (each.value or 0) > 0}
        order = sorted(mine, key=lambda key: -abs(mine[key].value or 0))
        names = [f"{task} in {named(code)} ({_percent(mine[task, code])})" for task, code in order]
        if len(names) > _SHOWN:
            names = [*names[:_SHOWN], f"{len(names) - _SHOWN} more"]
        if names:
            parts.append(f"{word} {listed(names)}")
    return "; ".join(parts)


def _perplexity(changes: Changes) -> list[str]:
    cells = {code: each for code, each in changes.averages.items() if each.value is not None}
    real = {code: each for code, each in cells.items() if each.significant}
    worse = {code: each for code, each in real.items() if (each.value or 0) < 0}
    if not any(each.n for each in cells.values()):
        return []
    marked = {code: each for code, each in cells.items() if each.worse_than_english}
    text = f"Perplexity is really worse in {len(worse)} of {len(cells)} languages"
    if worse:
        code = min(worse, key=lambda code: worse[code].value or 0)
        text += f", most in {named(code)} ({signed(-(worse[code].value or 0), 1)} %)"
    if better := {code: each for code, each in real.items() if code not in worse}:
        text += f", and really better in {_places(better)}"
    if "en" in cells and len(cells) > 1:
        text += f"; hurt more than English: {_places(marked) if marked else 'none beyond chance'}"
    return [f"{text}."]


def _places(changes: dict[str, Change]) -> str:
    return listed([f"{named(code)} ({_percent(each)})" for code, each in changes.items()])


def _percent(change: Change) -> str:
    return f"{signed(change.value or 0, 1)} %"


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
        f"Its predictions are {mean:.3g} nats (KL) from the float model's on the mean of "
        f"{len(rows)} languages, most in {named(worst)} ({rows[worst].value:.3g})"
    )
    nearest = [found for code in rows if (found := behind(compared, code)) is not None]
    if nearest:
        best = sum(found[0] == model for found in nearest)
        text += f"; it is the nearest of the models in {best} of {len(nearest)}"
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
