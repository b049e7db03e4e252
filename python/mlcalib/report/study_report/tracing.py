"""From a bad cell to its layers."""

from collections.abc import Mapping

from mlcalib.report.page.colours import NOTHING, diverging, ratio_share, sequential
from mlcalib.report.page.document import (
    MISSING,
    Beside,
    Cell,
    Details,
    Map,
    Paragraph,
    Plot,
    Row,
    Section,
    Table,
)
from mlcalib.report.page.words import full_name, head, signed
from mlcalib.report.study_report.comparison import Grid
from mlcalib.report.study_report.layers import (
    Blocks,
    Input,
    by_block,
    kinds,
    place,
    relative,
    short,
)
from mlcalib.report.study_report.ranges import channels, range_text, share
from mlcalib.report.study_report.results import ModelReport

DOUBLINGS = 1.5
"""Ratios of layer losses beyond 2.8 and below 1/2.8 get the last colour."""
TOP = 10


def layer_losses(report: ModelReport, prefix: str) -> Section:
    """Return which layers lose more under English-only calibration, language by language."""
    section = Section(f"{prefix}layers", "Which layers the loss comes from")
    section.blocks.append(
        Paragraph(
            "Loss of a linear: tr(D G Dᵀ) per token on the evaluation text of a language, D the "
            "change of the weight and G the Gram of its input. Its power is tr(W G Wᵀ) of the "
            "unquantized weight; their ratio is the share of the output that quantization turns "
            "into noise, and can be compared between layers and languages. Experts of a block are "
            "averaged."
        )
    )
    for grid in report.main:
        if grid.tokens is None:
            continue
        pair = report.pair(grid)
        if pair is None:
            section.blocks.append(
                Paragraph(f"{grid.quantizer}: no English-only and multilingual setting to compare.")
            )
            continue
        first, second = pair
        losses = {
            code: (
                relative(report.model, first.variant, code),
                relative(report.model, second.variant, code),
            )
            for code in report.layer_languages
        }
        losses = {code: each for code, each in losses.items() if all(each)}
        if not losses:
            section.blocks.append(Paragraph(f"{grid.quantizer}: layer losses are {MISSING}."))
            continue
        names = first.label, second.label
        section.blocks += [
            _excess_table(grid, losses, names),
            Plot(
                f"{prefix}layers-{grid.quantizer}",
                f"{grid.quantizer}: loss under `{names[0]}` ÷ loss under `{names[1]}` of every "
                "linear, on the evaluation text of each language.",
            ),
            Paragraph("Unfold a language to see its layers:", "note"),
            *(_language(report, grid, code, each, names) for code, each in losses.items()),
        ]
    return section


def excess(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return linear → relative loss under the first less that under the second."""
    return {linear: first[linear] - second[linear] for linear in first if linear in second}


def _excess_table(
    grid: Grid,
    losses: dict[str, tuple[dict[str, float], dict[str, float]]],
    names: tuple[str, str],
) -> Table:
    """Languages × kinds of linear: of the sum of relative losses, the rise from second to first."""
    sums = {}
    for code, (first, second) in losses.items():
        by_kind: dict[str, float] = {}
        for (_, kind), value in _summed(excess(first, second)).items():
            by_kind[kind] = by_kind.get(kind, 0.0) + value
        sums[code] = by_kind
    order = kinds((0, kind) for each in sums.values() for kind in each)
    end = max((abs(value) for each in sums.values() for value in each.values()), default=1.0) or 1.0
    rows: list[Row] = []
    for code, by_kind in sums.items():
        top = sorted(excess(*losses[code]).items(), key=lambda item: -item[1])[:3]
        rows.append(
            [
                head(code),
                Cell(signed(sum(by_kind.values()))),
                *(
                    Cell(signed(by_kind[kind]), colour=diverging(by_kind[kind] / end))
                    if kind in by_kind
                    else Cell(MISSING, colour=NOTHING, grey=True)
                    for kind in order
                ),
                Cell("; ".join(short(linear) for linear, _ in top), plain=True),
            ]
        )
    caption = (
        f"{grid.quantizer}: relative loss under {names[0]} less that under {names[1]}, summed over "
        "the linears of a kind"
    )
    header: Row = [
        "language",
        "all linears",
        *order,
        Cell("block and linear that add most", plain=True),
    ]
    return Table(caption, header, rows, heat=True)


def _summed(values: Mapping[str, float]) -> Blocks:
    """By block and kind; experts of a block are added up here, as in the sum over all linears."""
    found: Blocks = {}
    for linear, value in values.items():
        found[place(linear)] = found.get(place(linear), 0.0) + value
    return found


def _language(
    report: ModelReport,
    grid: Grid,
    code: str,
    losses: tuple[dict[str, float], dict[str, float]],
    names: tuple[str, str],
) -> Details:
    first, second = (by_block(each) for each in losses)
    end = max([*first.values(), *second.values()])
    last = 2**DOUBLINGS
    ratio = {at: first[at] / second[at] for at in first if second.get(at, 0) > 0}
    maps = [
        _map(f"{names[0]}: loss ÷ power; grey 0, blue {end:.2g}", first, end),
        _map(f"{names[1]}: loss ÷ power; the same colours", second, end),
        _ratio_map(f"{names[0]} ÷ {names[1]}; blue 1/{last:.1f}, grey 1, orange {last:.1f}", ratio),
    ]
    rises = [grid.measured.rise(column.variant, code) for column in report.pair(grid) or ()]
    text = " and ".join(
        f"{signed(rise.value)} under {name}"
        for rise, name in zip(rises, names, strict=False)
        if rise is not None
    )
    summary = f"{full_name(code)}, {grid.quantizer}" + (f": loss rises by {text}" if text else "")
    return Details(summary, [Beside(maps), _top_table(report, code, losses, names)])


def _map(title: str, values: Blocks, end: float) -> Map:
    return _blocks_map(
        title,
        {at: sequential(value / end) for at, value in values.items()},
        {at: f"{value:.4f}" for at, value in values.items()},
    )


def _ratio_map(title: str, ratios: Blocks) -> Map:
    return _blocks_map(
        title,
        {at: diverging(ratio_share(ratio, DOUBLINGS)) for at, ratio in ratios.items()},
        {at: f"{ratio:.2f}" for at, ratio in ratios.items()},
    )


def _blocks_map(
    title: str, colours: dict[tuple[int, str], str], texts: dict[tuple[int, str], str]
) -> Map:
    rows, columns = kinds(colours), sorted({block for block, _ in colours})
    return Map(
        title,
        rows,
        [str(block) for block in columns],
        [[colours.get((block, kind), NOTHING) for block in columns] for kind in rows],
        [
            [f"block {block}, {kind}: {texts.get((block, kind), MISSING)}" for block in columns]
            for kind in rows
        ],
    )


def _top_table(
    report: ModelReport,
    code: str,
    losses: tuple[dict[str, float], dict[str, float]],
    names: tuple[str, str],
) -> Table:
    more = excess(*losses)
    total = sum(more.values())
    by_linear = [_by_linear(report, name, code) for name in names]
    rows: list[Row] = []
    for linear in sorted(more, key=lambda name: -more[name])[:TOP]:
        one, other = (each.get(linear) for each in by_linear)
        rows.append(
            [
                Cell(short(linear), title=linear, head=True),
                f"{losses[0][linear]:.4f}",
                f"{losses[1][linear]:.4f}",
                f"{losses[0][linear] / losses[1][linear]:.2f}" if losses[1][linear] else "∞",
                f"{100 * more[linear] / total:.1f} %" if total > 0 else "no excess",
                range_text(one.calibrated if one else None),
                range_text(one.evaluated if one else None),
                share(one),
                share(other),
                Cell(channels(one), plain=True),
            ]
        )
    header: Row = [
        "linear", names[0], names[1], "ratio", "of the excess", f"input range, text of {names[0]}",
        f"input range, {full_name(code)}", f"outside, {names[0]}", f"outside, {names[1]}",
        Cell(f"channels outside, {names[0]}", plain=True),
    ]  # fmt: skip
    return Table(
        f"{full_name(code)}: the {len(rows)} linears that lose most more under {names[0]}",
        header,
        rows,
    )


def _by_linear(report: ModelReport, setting: str, code: str) -> dict[str, Input]:
    known = report.activations.get(setting)
    inputs = known.inputs(code) if known else []
    return {linear: each for each in inputs for linear in each.linears}
