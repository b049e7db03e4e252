"""Predicted loss against measured rise."""

from dataclasses import dataclass

from mlcalib.report.page.document import Cell, Paragraph, Plot, Row, Section, Table
from mlcalib.report.page.words import head, signed
from mlcalib.report.study_report.comparison import Column
from mlcalib.report.study_report.layers import predicted, spearman
from mlcalib.report.study_report.results import ModelReport

MEANING = (
    "Predicted loss of a checkpoint in a language: the sum over all linears of the loss on the "
    "language's evaluation text ÷ the power of the linear's output on it (see below). Where the "
    "study asked for gradients (fisher_tokens), it is the sum of the divergences that they predict "
    "on the language's calibration text, in nats per token. Neither needs an evaluation of the "
    "quantized model. If it ranks settings as the measured rise does, it can choose between them."
)


@dataclass(frozen=True)
class Pair:
    """A checkpoint in a language, predicted and measured."""

    column: Column
    language: str
    predicted: float
    rise: float


def pairs(report: ModelReport, quantizer: str) -> list[Pair]:
    """Return all checkpoints × languages of a quantizer that have both, of all budgets."""
    found = []
    for grid in report.grids:
        for column in grid.columns if grid.quantizer == quantizer else ():
            for code in report.measured.languages:
                guess = predicted(report.model, column.variant, code)
                rise = grid.rises.get((column.variant, code))
                if guess is not None and rise is not None:
                    found.append(Pair(column, code, guess, rise.value))
    return found


def correlation(given: list[Pair]) -> float | None:
    """Return Spearman's rank correlation of predicted and measured."""
    return spearman([each.predicted for each in given], [each.rise for each in given])


def prediction(report: ModelReport, prefix: str) -> Section:
    """Return scatter plots and rank correlations."""
    section = Section(f"{prefix}predicted", "Does the loss of the layers predict the rise?")
    section.blocks.append(Paragraph(MEANING))
    quantizers = list(dict.fromkeys(grid.quantizer for grid in report.grids))
    found = {quantizer: pairs(report, quantizer) for quantizer in quantizers}
    found = {quantizer: each for quantizer, each in found.items() if len(each) > 1}
    if not found:
        section.blocks.append(Paragraph("Losses of layers or rises are not measured."))
        return section
    rows: list[Row] = [
        [
            Cell("all languages together", head=True),
            *(_cell(each) for each in found.values()),
        ]
    ]
    for code in report.measured.languages:
        mine = {
            quantizer: [pair for pair in each if pair.language == code]
            for quantizer, each in found.items()
        }
        rows.append([head(code), *(_cell(each) for each in mine.values())])
    section.blocks += [
        Plot(f"{prefix}predicted", "Predicted loss against the measured rise of the token loss."),
        Table(
            "Spearman's rank correlation; n: checkpoints × languages above, checkpoints below",
            ["language", *found],
            rows,
        ),
    ]
    return section


def _cell(given: list[Pair]) -> Cell:
    rho = correlation(given)
    return Cell("too few, or all alike" if rho is None else signed(rho, 2), f"n = {len(given)}")
