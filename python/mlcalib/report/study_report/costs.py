"""What a study cost, and what separate runs would have."""

from mlcalib.report.page.document import Block, Cell, Paragraph, Row, Section, Table
from mlcalib.report.page.words import number, seconds, size
from mlcalib.report.study_report.results import ModelReport

PASS = {
    "load": "loading blocks",
    "forward": "forward pass over the calibration text",
    "gram": "Gram matrices",
    "heldout": "pass over the evaluation text, for losses and ranges",
}
SOLVING = {
    "scale": "searching scales",
    "solve": "solving",
    "losses": "losses per language",
    "write": "writing checkpoints",
}


def spent(report: ModelReport) -> dict[str, float]:
    """Return phase → seconds: of the shared pass, of all variants, of evaluation."""
    shared = report.model.costs.seconds
    found = {name: shared[name] for name in [*PASS, *(set(shared) - set(PASS))] if name in shared}
    records = report.model.records.values()
    for name in dict.fromkeys(
        [*SOLVING, *sorted({key for each in records for key in each.seconds})]
    ):
        taken = [each.seconds[name] for each in records if name in each.seconds]
        if taken:
            found[f"variants: {name}"] = sum(taken)
    taken = [each.seconds for each in report.model.evaluations.values() if each.seconds is not None]
    if taken:
        found["evaluation"] = sum(taken)
    return found


def separate(report: ModelReport) -> dict[str, float] | None:
    """Return phase → seconds that a run for every variant would take, estimated.

    Forward and Gram in proportion to tokens, loading once a run, the rest as it was.
    """
    costs = report.model.costs
    if not costs.tokens or not costs.separate_tokens:
        return None
    times = costs.separate_tokens / costs.tokens
    runs = len(report.study.plan.variants)
    factors = {"forward": times, "gram": times, "load": runs}
    return {name: value * factors.get(name, 1) for name, value in spent(report).items()}


def cost(report: ModelReport, prefix: str) -> Section:
    """Return time, memory and disk."""
    section = Section(f"{prefix}cost", "What it cost")
    costs, plan = report.model.costs, report.study.plan
    section.blocks.append(
        Table(
            "In all",
            ["what", "measured"],
            [
                [Cell("peak memory", head=True), size(costs.peak_bytes)],
                [Cell("checkpoints", head=True), _disk(report)],
                [Cell("calibration tokens through the model", head=True), number(costs.tokens)],
                [
                    Cell(f"the same for {len(plan.variants)} separate runs", head=True),
                    number(costs.separate_tokens),
                ],
            ],
        )
    )
    section.blocks += _time(report)
    warnings = [
        f"`{name}`: {text}"
        for name, record in report.model.records.items()
        for text in record.warnings
    ]
    if warnings:
        section.blocks.append(Paragraph(f"**Warnings.** {' '.join(warnings)}", "warning"))
    return section


def _time(report: ModelReport) -> list[Block]:
    mine, apart = spent(report), separate(report)
    if not mine:
        return [Paragraph("Time is not measured.")]
    rows: list[Row] = [
        [Cell(_phase(name), head=True), seconds(value), seconds(apart[name]) if apart else _UNKNOWN]
        for name, value in mine.items()
    ]
    foot: list[Row] = [
        [
            Cell("together", head=True),
            seconds(sum(mine.values())),
            seconds(sum(apart.values())) if apart else _UNKNOWN,
        ]
    ]
    blocks: list[Block] = [
        Table("Time", ["phase", "shared pass", "separate runs, estimated"], rows, foot)
    ]
    if apart:
        quantization = [name for name in mine if name != "evaluation"]
        share = sum(mine[name] for name in quantization) / sum(apart[name] for name in quantization)
        blocks.append(
            Paragraph(
                f"Without evaluation the shared pass took {share:.2f} of the time that separate "
                "runs would. Estimated, not run: forward pass and Gram matrices in proportion to "
                "tokens, loading once a run, everything else as measured.",
                "note",
            )
        )
    return blocks


_UNKNOWN = "not measured"


def _phase(name: str) -> str:
    known = {**PASS, **{f"variants: {key}": text for key, text in SOLVING.items()}}
    return known.get(name, name)


def _disk(report: ModelReport) -> str:
    found = [each.bytes for each in report.model.records.values() if each.bytes is not None]
    return f"{size(sum(found))} in {len(found)}" if found else _UNKNOWN
