"""What the report says, as rows of CSV files."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from mlcalib.report.evaluation_report.tables import change_tables
from mlcalib.report.study_report.clipping import clipping_records
from mlcalib.report.study_report.comparison import Grid
from mlcalib.report.study_report.costs import separate, spent
from mlcalib.report.study_report.folder import FLOAT
from mlcalib.report.study_report.layers import place, predicted
from mlcalib.report.study_report.prediction import correlation, pairs
from mlcalib.report.study_report.results import ModelReport, Results
from mlcalib.report.study_report.sizes import records
from mlcalib.report.study_report.tasks import task_grids
from mlcalib.results.significance import Difference

Records = list[dict[str, Any]]


def tables(results: Results) -> dict[str, Records]:
    """Return file name without ending → rows; all models together."""
    makers: dict[str, Callable[[ModelReport], Records]] = {
        "rises": _rises,
        "settings": _settings,
        "sizes": records,
        "predicted": _predicted,
        "rank_correlation": _correlations,
        "layer_losses": _layer_losses,
        "activation_ranges": _ranges,
        "outside": _outside,
        "clipped": clipping_records,
        "costs": _costs,
        "tasks": lambda report: _tasks(results, report),
        **{f"tasks_{name}": partial(_compared, name) for name in ("changes", "groups", "flips")},
    }
    found = {
        name: [
            {"model": report.model.slug, **row} for report in results.models for row in make(report)
        ]
        for name, make in makers.items()
    }
    return {name: rows for name, rows in found.items() if rows}


def spread(name: str, difference: Difference | None) -> dict[str, Any]:
    """Return a difference as columns NAME, NAME_low, NAME_high, NAME_p."""
    parts = ("value", "low", "high", "p")
    values = [None if difference is None else getattr(difference, part) for part in parts]
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_p"), values, strict=True))


def _rises(report: ModelReport) -> Records:
    return [row for grid in report.grids for row in _grid(grid)]


def _grid(grid: Grid) -> Records:
    rows: Records = []
    for column in [*grid.references, *grid.columns]:
        for code in grid.measured.languages:
            rise, text = grid.rises.get((column.variant, code)), grid.measured.texts.get(code)
            row = {
                "quantizer": grid.quantizer,
                "tokens": grid.tokens,
                "setting": column.setting,
                "variant": column.variant,
                "language": code,
            }
            if rise is None or text is None:
                rows.append({**row, "measured": False})
                continue
            loss = grid.measured.loss(column.variant, code)
            competes = column in grid.columns
            rows.append(
                {
                    **row,
                    "measured": True,
                    "documents": text.documents,
                    "scored_tokens": text.tokens,
                    "float_loss": text.loss,
                    "loss": loss,
                    **spread("rise", rise),
                    "rise_p_holm": grid.adjusted.get((column.variant, code)),
                    "float_perplexity": text.perplexity,
                    "perplexity": math.exp(loss),
                    "perplexity_rise": math.exp(loss) - text.perplexity,
                    "float_bits_per_byte": text.bits_per_byte,
                    "bits_per_byte": text.bits_per_byte * loss / text.loss,
                    "best": competes and grid.best(code) == column.variant,
                    **spread(
                        "behind_best", grid.behind(column.variant, code) if competes else None
                    ),
                }
            )
    return rows


def _settings(report: ModelReport) -> Records:
    rows = []
    for grid in report.grids:
        for each in grid.standings:
            code, rise = each.worst or (None, None)
            rows.append(
                {
                    "quantizer": grid.quantizer,
                    "tokens": grid.tokens,
                    "setting": each.column.setting,
                    "variant": each.column.variant,
                    **spread("mean_rise", each.mean),
                    **spread("behind_best", each.against_best),
                    "worst_language": code,
                    **spread("worst_rise", rise),
                    "wins": each.wins,
                    "not_told_apart_from_best": each.close,
                    "differs_from_float": each.hurt,
                    "languages": len(grid.measured.languages),
                }
            )
    return rows


def _predicted(report: ModelReport) -> Records:
    return [
        {"variant": variant, "language": code, "predicted": value}
        for variant in report.study.plan.variants
        for code in report.layer_languages
        if (value := predicted(report.model, variant, code)) is not None
    ]


def _correlations(report: ModelReport) -> Records:
    rows = []
    for quantizer in dict.fromkeys(grid.quantizer for grid in report.grids):
        found = pairs(report, quantizer)
        for code in ("all", *report.measured.languages):
            mine = [pair for pair in found if code in ("all", pair.language)]
            row = {"quantizer": quantizer, "language": code, "spearman": correlation(mine)}
            rows.append({**row, "n": len(mine)})
    return rows


def _layer_losses(report: ModelReport) -> Records:
    rows = []
    for variant, record in report.model.records.items():
        for linear, by_language in record.heldout.items():
            block, kind = place(linear)
            for code, loss in by_language.items():
                power = report.model.layers.power.get(linear, {}).get(code)
                rows.append(
                    {
                        "variant": variant,
                        "linear": linear,
                        "block": block,
                        "kind": kind,
                        "language": code,
                        "calibration_loss": record.losses.get(linear, {}).get(code),
                        "evaluation_loss": loss,
                        "power": power,
                        "relative_loss": loss / power if power else None,
                    }
                )
    return rows


def _ranges(report: ModelReport) -> Records:
    layers = report.model.layers
    rows = []
    for linear in dict.fromkeys([*layers.ranges, *layers.heldout_ranges]):
        for code in report.layer_languages:
            first = layers.ranges.get(linear, {}).get(code, (None, None))
            second = layers.heldout_ranges.get(linear, {}).get(code, (None, None))
            names = ("calibration_low", "calibration_high", "evaluation_low", "evaluation_high")
            ends = dict(zip(names, (*first, *second), strict=True))
            rows.append({"linear": linear, "language": code, **ends})
    return rows


def _outside(report: ModelReport) -> Records:
    return [
        {
            "setting": setting,
            "linear": linear,
            "language": code,
            "share": each.share,
            "channels": " ".join(f"{name}:{value:g}" for name, value in each.channels.items()),
        }
        for setting, linears in report.model.layers.outside.items()
        for linear, by_language in linears.items()
        for code, each in by_language.items()
    ]


def _costs(report: ModelReport) -> Records:
    apart = separate(report) or {}
    costs = report.model.costs
    rows: Records = [
        {"what": name, "unit": "s", "measured": value, "separate_runs_estimated": apart.get(name)}
        for name, value in spent(report).items()
    ]
    for name, unit, value, other in (
        ("peak memory", "bytes", costs.peak_bytes, None),
        ("calibration tokens", "tokens", costs.tokens, costs.separate_tokens),
    ):
        row = {"what": name, "unit": unit, "measured": value, "separate_runs_estimated": other}
        rows.append(row)
    return rows


def _tasks(results: Results, report: ModelReport) -> Records:
    rows = []
    for grid in task_grids(results, report) if FLOAT in report.model.evaluations else ():
        for (variant, code), each in grid.changes.items():
            rows.append(
                {
                    "task": grid.task,
                    "metric": grid.metric,
                    "quantizer": grid.grid.quantizer,
                    "variant": variant,
                    "language": code,
                    "float": each.base,
                    "value": each.value,
                    "change": each.value - each.base,
                    "change_low": each.test and each.test.low,
                    "change_high": each.test and each.test.high,
                    "items": each.test and each.test.n,
                    "test": each.name,
                    "p": each.p,
                    "p_holm": grid.adjusted.get((variant, code)),
                }
            )
    return rows


def _compared(name: str, report: ModelReport) -> Records:
    """Return one of the tables that an evaluation has too."""
    return [
        {"quantizer": quantizer, **row}
        for quantizer, each in report.compared.items()
        for row in change_tables(each)[name]
    ]
