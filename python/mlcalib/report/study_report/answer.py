"""What a reader sees first: what was run, and which calibration was best."""

from mlcalib.report.page.document import MISSING, Block, Cell, Paragraph, Row, Section, Table
from mlcalib.report.page.words import between, bounds, full_name, listed, named, signed
from mlcalib.report.study_report.comparison import Grid, Standing
from mlcalib.report.study_report.folder import StudyFile
from mlcalib.report.study_report.results import ModelReport, Results
from mlcalib.results.significance import Difference


def answer(results: Results) -> Section:
    """Return the section that says which setting is best, and what English alone costs."""
    section = Section("answer", "The answer first")
    for report in results.models:
        head = f"On {_model(report)}: " if len(results.models) > 1 else ""
        for grid in report.main:
            section.blocks.append(Paragraph(head + _sentences(grid), "lead"))
        if table := _table(report):
            section.blocks.append(table)
    section.blocks += [*_unfinished(results), Paragraph(_run(results)), Paragraph(_how(results))]
    return section


def rise(difference: Difference | None) -> str:
    """Return ``rises by 0.123 [0.101, 0.145] nats``; ``changes by`` where it does not rise."""
    way = "changes" if difference is not None and difference.value < 0 else "rises"
    return f"{way} by {between(difference).removeprefix('+')} nats"


def ranked(grid: Grid) -> list[Standing]:
    """Return standings by mean rise, least first, of those measured in all languages."""
    done = [each for each in grid.standings if each.mean is not None and each.worst is not None]
    return sorted(done, key=lambda each: each.mean.value if each.mean else 0.0)


def mildest(grid: Grid) -> Standing | None:
    """Return the setting whose worst language suffers least."""
    return min(
        ranked(grid), key=lambda each: each.worst[1].value if each.worst else 0, default=None
    )


def _model(report: ModelReport) -> str:
    return f"`{report.model.slug}`"


def _sentences(grid: Grid) -> str:
    order, mild, start = ranked(grid), mildest(grid), f"**{grid.quantizer}**"
    if not grid.measured.languages:
        return f"{start}: the study has no evaluation."
    if not order or mild is None:
        return f"{start}: {MISSING} in all languages yet."
    best = order[0]
    count = len(grid.measured.languages)
    if grid.tokens is None:
        return (
            f"{start} needs no calibration: token loss {rise(best.mean)} on the "
            f"mean of {count} languages, most in {_worst(best)}."
        )
    if len(order) < 2:
        return (
            f"{start}: only {_setting(best)} is measured in all languages; token loss "
            f"{rise(best.mean)} on their mean, most in {_worst(best)}."
        )
    close = [each for each in order[1:] if each.against_best and not each.against_best.significant]
    both = mild is best
    text = (
        f"{start}: calibrating with {_setting(best)} is best on the mean"
        f"{' and on the worst language' if both else ''}. Token loss {rise(best.mean)} "
        f"on the mean of {count} languages, and most in {_worst(best)}."
    )
    if close:
        text += (
            f" Not told apart from it on the mean: {listed([_setting(each) for each in close])}."
        )
    if not both:
        text += f" Best on the worst language is {_setting(mild)}: {_worst(mild)}."
    return f"{text} {_english(grid, best)}"


def _english(grid: Grid, best: Standing) -> str:
    english = grid.english()
    if english is None:
        return "The study has no English-only setting."
    if english.mean is None or english.worst is None:
        return f"English-only calibration ({_setting(english)}) is {MISSING} in all languages yet."
    if english is best or english.against_best is None or best.mean is None:
        return "No setting is better on the mean than English-only calibration."
    times = english.mean.value / best.mean.value if best.mean.value > 0 else None
    much = f", {times:.1f} times as much" if times is not None else ""
    sure = "" if english.against_best.significant else "; the difference is not significant"
    cost = between(english.against_best).removeprefix("+")
    return (
        f"English-only calibration ({_setting(english)}) costs {cost} nats more on the mean "
        f"({signed(english.mean.value)}{much}{sure}) and hurts {_worst(english)} most."
    )


def _setting(standing: Standing) -> str:
    return f"`{standing.column.label}`"


def _worst(standing: Standing) -> str:
    if standing.worst is None:
        return MISSING
    code, found = standing.worst
    return f"{named(code)} ({between(found)})"


def _table(report: ModelReport) -> Table | None:
    rows: list[Row] = []
    for grid in report.main:
        order, mild = ranked(grid), mildest(grid)
        if grid.tokens is None or len(order) < 2 or mild is None or mild.worst is None:
            continue
        best, english = order[0], grid.english()
        cost = None
        if english is not None:
            cost = grid.measured.between_worst(english.column.variant, mild.column.variant)
        worst, most = mild.worst
        rows.append(
            [
                Cell(grid.quantizer, head=True),
                Cell(best.column.label, between(best.mean)),
                Cell(mild.column.label, f"{full_name(worst)} {between(most)}"),
                _cell(english.mean if english else None),
                _cell(english.against_best if english else None),
                _cell(cost),
            ]
        )
    if not rows:
        return None
    header = [
        "quantizer", "best on the mean", "best on the worst language", "English only, mean rise",
        "English only costs, mean", "English only costs, worst language",
    ]  # fmt: skip
    caption = f"Rise in token loss (nats), {_model(report)}; 95 % intervals in brackets"
    return Table(caption, header, rows)


def _cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(MISSING)
    return Cell(signed(difference.value), bounds(difference), grey=not difference.significant)


def _unfinished(results: Results) -> list[Block]:
    return [
        Paragraph(f"**Not measured yet** for {_model(report)}: {'; '.join(missing)}.", "warning")
        for report in results.models
        if (missing := report.missing())
    ]


def _run(results: Results) -> str:
    plan = results.study.plan
    models = [_described(plan, slug) for slug in plan.models]
    budgets = sorted({setting.tokens for setting in plan.settings.values()})
    quantizers = list(dict.fromkeys(variant.quantizer for variant in plan.variants.values()))
    shown = [f"{tokens:,}" for tokens in budgets]
    return (
        f"**What was run.** Study ⟨{plan.name}⟩: {listed(models)}, quantized by "
        f"{listed([f'`{each}`' for each in quantizers])} after calibration with "
        f"{len(plan.settings)} settings of {listed(shown)} tokens from `{plan.corpus}` "
        f"({len(plan.variants)} checkpoints a model; activations of the {plan.propagate} model), "
        f"and measured in {len(plan.evaluation.languages)} languages. "
        f"{plan.evaluation.definition} {plan.source}".strip()
    )


def _described(plan: StudyFile, slug: str) -> str:
    info = plan.models[slug]
    size = "" if info.parameters is None else f"{info.parameters / 1e6:,.3g} M parameters"
    facts = [each for each in (size, info.dtype) if each]
    return f"`{info.source}`" + (f" ({', '.join(facts)})" if facts else "")


def _how(results: Results) -> str:
    plan = results.study.plan
    counts = [
        text.documents for report in results.models for text in report.measured.texts.values()
    ]
    few, many = min(counts, default=0), max(counts, default=0)
    documents = f"{many}" if few == many else f"{few} to {many}"
    versions = [f"{name} {version}" for name, version in plan.versions.items()]
    return (
        "**How sure.** Every difference is between models on the same documents "
        f"({documents} of them a language). Intervals hold 95 %: a paired bootstrap over "
        f"documents, {results.resamples:,} resamples, seed {results.seed}, widened as Student's t "
        "where documents are few. A language with a single document has no interval; in a mean it "
        "is taken to vary as the others do. What is called "
        "significant has p < 0.05 by itself; where many cells are looked at, some pass by chance, "
        "so the tables also give p after Holm's correction for all cells of a heat map. "
        f"Made by mlcalib {plan.mlcalib}, {', '.join(versions)}, {plan.isa}, "
        f"threads: {plan.threads or 'not recorded'}."
    )
