"""Heat maps, wins, worst languages and curves of calibration sizes."""

import math

from mlcalib.report.page.colours import NOTHING, diverging, faded
from mlcalib.report.page.document import (
    MISSING,
    Block,
    Cell,
    Details,
    Paragraph,
    Plot,
    Row,
    Scale,
    Section,
    Table,
)
from mlcalib.report.page.words import (
    between,
    bounds,
    full_name,
    head,
    hint,
    named,
    number,
    probability,
    seconds,
    signed,
)
from mlcalib.report.study_report.comparison import Column, Grid, Standing
from mlcalib.report.study_report.results import ModelReport, Point

LEGEND = (
    "Large: rise of the mean token loss in nats against the float model. Small: rise in token "
    "perplexity. **Boxed**: the best setting of the language. ≈: not told apart from the best. "
    "Grey italics: not significantly different from the float model. Rest the pointer on a cell "
    "for intervals and p."
)


def limit(report: ModelReport) -> float:
    """Return the rise at which colours end: the greatest of all settings of the main budget."""
    rises = [
        abs(rise.value)
        for grid in report.main
        for column in grid.columns
        for code in report.measured.languages
        if (rise := grid.rises.get((column.variant, code))) is not None
    ]
    return max(rises, default=1.0) or 1.0


def heat_maps(report: ModelReport, prefix: str) -> Section:
    """Return the heat map of each quantizer, its standings below it."""
    section = Section(f"{prefix}rises", "Languages × settings")
    end = limit(report)
    section.blocks += [Paragraph(LEGEND, "note"), _scale(end)]
    if not report.measured.texts:
        return Section(section.anchor, section.title, [Paragraph(f"Perplexity is {MISSING}.")])
    for grid in report.main:
        section.blocks += _with_standings(grid, end)
    if report.others:
        blocks: list[Block] = []
        for grid in report.others:
            blocks += _with_standings(grid, end)
        budgets = [f"{tokens:,}" for tokens in sorted({grid.tokens or 0 for grid in report.others})]
        section.blocks.append(Details(f"Other budgets: {', '.join(budgets)} tokens", blocks))
    return section


def _with_standings(grid: Grid, end: float) -> list[Block]:
    blocks: list[Block] = [heat_table(grid, end), Paragraph(_counts(grid), "note")]
    if grid.tokens is not None:
        blocks.append(standings_table(grid))
    return blocks


def heat_table(grid: Grid, end: float) -> Table:
    """Return languages × settings as a coloured table."""
    columns = [*grid.references, *grid.columns]
    tokens = "" if grid.tokens is None else f", {grid.tokens:,} calibration tokens a setting"
    header = ["language", "float perplexity", *(column.label for column in columns)]
    rows = []
    for code in grid.measured.languages:
        text = grid.measured.texts.get(code)
        documents = MISSING if text is None else f"{text.documents} documents"
        bits = "" if text is None else f"{text.bits_per_byte:.3f} bits/byte"
        base = Cell(number(text.perplexity if text else None, ".2f"), bits, title="the float model")
        rows.append(
            [head(code, documents), base, *(_heat(grid, column, code, end) for column in columns)]
        )
    return Table(f"{grid.quantizer}{tokens}", header, rows, _foot(grid, columns), heat=True)


def _heat(grid: Grid, column: Column, code: str, end: float) -> Cell:
    rise, text = grid.rises.get((column.variant, code)), grid.measured.texts.get(code)
    if rise is None or text is None:
        return Cell(MISSING, colour=NOTHING, grey=True)
    competes = column in grid.columns
    best = competes and grid.best(code) == column.variant
    behind = grid.behind(column.variant, code) if competes else None
    close = behind is not None and not best and not behind.significant
    loss = grid.measured.loss(column.variant, code)
    title = (
        f"{full_name(code)}, {column.label}: token loss {loss:.4f} (float {text.loss:.4f}), rise "
        f"{between(rise, 4)}, {probability(rise.p)}, after Holm "
        f"{probability(grid.adjusted.get((column.variant, code)))}; {rise.n} documents"
    )
    if behind is not None and not best:
        title += f". Behind the best, {grid.best(code)}: {between(behind, 4)}, "
        title += probability(behind.p)
    colour = diverging(rise.value / end)
    return Cell(
        signed(rise.value) + (" ≈" if close else ""),
        f"ppl {signed(perplexity_rise(grid, column.variant, code), 2)}",
        colour=colour if rise.significant else faded(colour),
        title=title,
        best=best,
        grey=not rise.significant,
    )


def perplexity_rise(grid: Grid, variant: str, code: str) -> float:
    """Return perplexity less that of the float model."""
    return math.exp(grid.measured.loss(variant, code)) - grid.measured.texts[code].perplexity


def _foot(grid: Grid, columns: list[Column]) -> list[Row]:
    means: list[Cell | str] = [Cell("mean of languages", head=True), ""]
    worsts: list[Cell | str] = [Cell("worst language", head=True), ""]
    for column in columns:
        mean, worst = grid.measured.mean(column.variant), grid.measured.worst(column.variant)
        means.append(Cell(signed(mean.value), bounds(mean)) if mean else MISSING)
        rise = grid.rises.get((column.variant, worst)) if worst else None
        worsts.append(
            Cell(signed(rise.value), worst, title=full_name(worst))
            if rise is not None and worst
            else MISSING
        )
    return [means, worsts]


def _scale(end: float) -> Scale:
    steps = [(diverging(at / 4), signed(end * at / 4, 2)) for at in range(-4, 5)]
    return Scale(steps, "rise of the mean token loss, nats (the same scale for all quantizers)")


def _counts(grid: Grid) -> str:
    cells, alone = len(grid.rises), sum(rise.significant for rise in grid.rises.values())
    after = sum(p < 0.05 for p in grid.adjusted.values())
    few = [
        named(code) for code, text in grid.measured.texts.items() if text.documents < 6
    ]  # signs of five documents all agree by chance with p > 0.05
    text = (
        f"{alone} of {cells} cells differ from the float model with p < 0.05 each; {after} after "
        "Holm's correction for all of them."
    )
    if few:
        text += (
            f" Fewer than 6 documents: {', '.join(few)}; their intervals are wide, and more "
            "evaluation tokens would narrow them."
        )
    return text


def standings_table(grid: Grid) -> Table:
    """Return mean, worst language and wins of every setting."""
    header: Row = [
        "setting", "mean rise", "less that of the best", Cell("worst language", plain=True),
        "its rise", "wins", "≈ best", "differs from float",
    ]  # fmt: skip
    done = [each.mean.value for each in grid.standings if each.mean]
    rows = [_standing(grid, each, min(done, default=0.0)) for each in grid.standings]
    return Table(f"{grid.quantizer}: how each setting does", header, rows)


def _standing(grid: Grid, each: Standing, least: float) -> list[Cell | str]:
    total = len(grid.measured.languages)
    counts = [f"{each.wins} of {total}", str(each.close), f"{each.hurt} of {total}"]
    head = Cell(each.column.label, head=True)
    if each.mean is None or each.worst is None:
        return [head, *[MISSING] * 4, *counts]
    code, rise = each.worst
    best = each.mean.value == least
    behind = each.against_best
    return [
        head,
        Cell(signed(each.mean.value), bounds(each.mean), best=best),
        Cell("the best")
        if best or behind is None
        else Cell(signed(behind.value), f"{bounds(behind)}", grey=not behind.significant),
        Cell(full_name(code), title=hint(code), plain=True),
        Cell(signed(rise.value), bounds(rise)),
        *counts,
    ]


def curves(report: ModelReport, prefix: str) -> Section | None:
    """Return calibration sizes against quality and cost; None where all sizes are the same."""
    section = Section(f"{prefix}curves", "How much calibration text, in how many languages")
    for quantizer in dict.fromkeys(grid.quantizer for grid in report.grids):
        points = report.points(quantizer)
        if not curve_panels(points):
            continue
        section.blocks += [
            Plot(
                f"{prefix}curves-{quantizer}",
                f"{quantizer}: rise of the mean token loss (nats) on the mean of languages (solid) "
                "and in the worst language (dashed). Bars: 95 % intervals of the mean. "
                "Seconds: forward pass and Gram matrices that a setting alone would need, in "
                "proportion to its tokens; solving takes the same time at any size.",
            ),
            Details(f"{quantizer}: the numbers", [_points_table(quantizer, points)]),
        ]
    return section if section.blocks else None


def curve_panels(points: list[Point]) -> list[str]:
    """Return which curves there are: of ``tokens``, ``languages``, ``seconds``."""
    panels = []
    sets = [point.set_name for point in points]
    if any(sets.count(each) > 1 for each in sets):
        panels.append("tokens")
    if by_languages(points):
        panels.append("languages")
    if "tokens" in panels and all(point.seconds is not None for point in points):
        panels.append("seconds")
    return panels


def by_languages(points: list[Point]) -> dict[int, list[Point]]:
    """Return tokens → points by number of languages, of budgets with three numbers or more."""
    found: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda point: (point.tokens, point.languages)):
        found.setdefault(point.tokens, []).append(point)
    return {
        tokens: each
        for tokens, each in found.items()
        if len({point.languages for point in each}) >= 3
    }


def _points_table(quantizer: str, points: list[Point]) -> Table:
    header: Row = [
        "setting",
        "languages",
        "tokens",
        "mean rise",
        Cell("worst language", plain=True),
        "its rise",
        "seconds",
    ]
    rows: list[Row] = [
        [
            Cell(point.setting, head=True),
            str(point.languages),
            f"{point.tokens:,}",
            Cell(signed(point.mean.value), bounds(point.mean)),
            Cell(full_name(point.worst[0]), plain=True),
            Cell(signed(point.worst[1].value), bounds(point.worst[1])),
            seconds(point.seconds),
        ]
        for point in points
    ]
    return Table(f"{quantizer}: calibration sizes", header, rows)
