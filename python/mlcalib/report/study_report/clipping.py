"""What the static ranges of checkpoints leave outside, by calibration setting and language."""

from typing import Any

from mlcalib.checkpoints.record import clipped_shares
from mlcalib.report.page.document import Block, Cell, Details, Paragraph, Row, Section, Table
from mlcalib.report.page.words import full_name, head
from mlcalib.report.study_report.folder import Record
from mlcalib.report.study_report.ranges import share_cell
from mlcalib.report.study_report.results import ModelReport

TOP = 10
"""Linears shown of a variant."""
MEANING = (
    "Formats with static activations hold one range for the input of each linear, taken from the "
    "setting's own text. What lies outside is cut off at its end whenever the model runs. Shares "
    "are of each language's calibration text in this study, whether the setting has that language "
    "or not; mean over linears."
)


def clipping(report: ModelReport, prefix: str) -> Section | None:
    """Return the shares of each variant; None where no checkpoint holds ranges."""
    known = {name: record for name, record in report.model.records.items() if record.clipped}
    if not known:
        return None
    variants = report.study.plan.variants
    shares = {name: clipped_shares(record.clipped.values()) for name, record in known.items()}
    codes = list(dict.fromkeys(code for each in shares.values() for code in each))
    end = max(share for each in shares.values() for share in each.values()) or 1.0
    rows: list[Row] = [
        [head(code), *(share_cell(shares[name].get(code), end, 4) for name in known)]
        for code in codes
    ]
    blocks: list[Block] = [
        Paragraph(MEANING),
        Table("Mean share clipped, %", ["language", *known], rows, heat=True),
    ]
    for name, record in known.items():
        if worst := _worst(record):
            said = f"{name}: linears that clip most, of the setting {variants[name].setting}"
            blocks.append(Details(said, [worst]))
    return Section(f"{prefix}clipping", "Activations clipped by static ranges", blocks)


def clipping_records(report: ModelReport) -> list[dict[str, Any]]:
    """Return a row for each variant, linear and language."""
    return [
        {
            "variant": name,
            "setting": report.study.plan.variants[name].setting,
            "linear": linear,
            "language": code,
            "share": share,
        }
        for name, record in report.model.records.items()
        for linear, by_language in record.clipped.items()
        for code, share in by_language.items()
    ]


def _worst(record: Record) -> Table | None:
    largest = {
        linear: max(by_language.items(), key=lambda item: item[1])
        for linear, by_language in record.clipped.items()
        if any(by_language.values())
    }
    order = sorted(largest.items(), key=lambda item: -item[1][1])[:TOP]
    rows: list[Row] = [
        [Cell(linear, head=True), Cell(full_name(code), plain=True), f"{100 * share:.4f}"]
        for linear, (code, share) in order
    ]
    header: Row = ["linear", Cell("language", plain=True), "clipped, %"]
    return Table("Language with the largest share", header, rows) if rows else None
