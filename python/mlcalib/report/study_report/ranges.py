"""Activation ranges of calibration against evaluation text."""

from mlcalib.report.page.colours import NOTHING, sequential
from mlcalib.report.page.document import (
    MISSING,
    Cell,
    Details,
    Paragraph,
    Plot,
    Row,
    Section,
    Table,
)
from mlcalib.report.page.words import full_name, head, number
from mlcalib.report.study_report.layers import Input
from mlcalib.report.study_report.results import ModelReport

TOP = 10
"""Inputs shown of a language."""


def share(given: Input | None) -> str:
    """Return the share of activations outside as text."""
    return (
        MISSING if given is None or given.outside is None else f"{100 * given.outside.share:.3f} %"
    )


def channels(given: Input | None) -> str:
    """Return the worst channels and the share of each one's activations outside."""
    if given is None or given.outside is None:
        return MISSING
    worst = sorted(given.outside.channels.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{channel} ({100 * value:.0f} %)" for channel, value in worst) or "none"


def range_text(ends: tuple[float, float] | None) -> str:
    """Return the ends of a range as text."""
    return MISSING if ends is None else f"{number(ends[0], '.1f')} to {number(ends[1], '.1f')}"


def ranges(report: ModelReport, prefix: str) -> Section:
    """Return how much of each language's activations no calibration text had reached."""
    section = Section(f"{prefix}ranges", "Activations outside the calibrated range")
    if not report.activations:
        section.blocks.append(Paragraph(f"Activation ranges are {MISSING}."))
        return section
    settings = list(report.activations)
    shares = {
        (code, setting): known.mean_outside(code)
        for setting, known in report.activations.items()
        for code in report.layer_languages
    }
    end = max((value for value in shares.values() if value is not None), default=1.0) or 1.0
    rows: list[Row] = [
        [
            head(code),
            *(share_cell(shares[code, setting], end) for setting in settings),
        ]
        for code in report.layer_languages
    ]
    section.blocks += [
        Paragraph(
            "Share of the activations of a language's evaluation text (tokens × channels of the "
            "inputs of all linears, inputs weighted alike) outside the range that the setting's "
            "calibration text spans in the same channel. Such activations were never seen when the "
            "weights were quantized."
        ),
        Table("Mean share outside, %", ["language", *settings], rows, heat=True),
    ]
    pair = next((found for grid in report.main if (found := report.pair(grid))), None)
    setting = pair[0].setting if pair else None
    if setting is not None and setting in report.activations:
        section.blocks.append(
            Plot(
                f"{prefix}outside",
                f"Share of activations outside the range of `{setting}`, mean over the inputs of a "
                "block.",
            )
        )
        section.blocks += [
            Details(
                f"{full_name(code)}: inputs most outside `{setting}`",
                [_inputs(report, setting, code)],
            )
            for code in report.layer_languages
        ]
    return section


def share_cell(value: float | None, end: float, digits: int = 3) -> Cell:
    """Return a share in per cent, darker the nearer it is to ``end``."""
    if value is None:
        return Cell(MISSING, colour=NOTHING, grey=True)
    return Cell(f"{100 * value:.{digits}f}", colour=sequential(value / end))


def _inputs(report: ModelReport, setting: str, code: str) -> Table:
    found = [each for each in report.activations[setting].inputs(code) if each.outside]
    found.sort(key=lambda each: -each.outside.share if each.outside else 0.0)
    rows: list[Row] = [
        [
            Cell(each.name, head=True),
            range_text(each.calibrated),
            range_text(each.evaluated),
            share(each),
            Cell(channels(each), plain=True),
        ]
        for each in found[:TOP]
    ]
    header: Row = [
        "input of", f"range, calibration text of {setting}", f"range, {full_name(code)}",
        "share outside", Cell("channels (share of each outside)", plain=True),
    ]  # fmt: skip
    return Table(f"{full_name(code)}, {setting}", header, rows)
