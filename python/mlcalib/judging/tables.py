"""Win rates as tables, as rows of results and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlcalib.common.files import atomic_file
from mlcalib.judging.ratings import Score
from mlcalib.judging.win_rates import ALL, WinRate
from mlcalib.results.generations import Source
from mlcalib.results.rows import Row

Table = list[list[str]]
"""Cells as text: the header, then the rows."""

_RATE = ["items", "verdicts", "win rate % [95 %]", "W-L-T"]


def win_rate_table(rates: Mapping[str, WinRate]) -> Table:
    """Return win rates per language."""
    return [["language", *_RATE], *([code, *_cells(rate)] for code, rate in rates.items())]


def rating_table(scores: Mapping[str, Score]) -> Table:
    """Return win rates and agreement per language."""
    table = [["language", *_RATE, "raters", "skipped", "alpha", "of items"]]
    for code, score in scores.items():
        alpha = "not defined" if score.alpha is None else f"{score.alpha:.3f}"
        rest = [str(score.raters), str(score.skipped), alpha, str(score.rated_twice)]
        table.append([code, *_cells(score.win_rate), *rest])
    return table


def win_rate_rows(rates: Mapping[str, WinRate | None], source: Source, task: str) -> list[Row]:
    """Return win rates per language as tidy results, with the metric ``win_rate``.

    Args:
        rates: per language; ``all`` and None are left out.
        source: the second model.
        task: ``judged`` or ``rated``.
    """
    return [
        Row(source.model, source.method, source.calibration, code, task, "win_rate", rate.rate,
            rate.stderr, rate.n)
        for code, rate in rates.items()
        if rate is not None and code != ALL
    ]  # fmt: skip


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write results, with the dataclasses of this package in them, as a JSON file."""
    with atomic_file(path) as file:
        json.dump(content, file, default=asdict, ensure_ascii=False, allow_nan=False, indent=1)
        file.write("\n")


def _cells(rate: WinRate | None) -> list[str]:
    if rate is None:
        return ["0", "0", "not rated", ""]
    wins = f"{rate.wins}-{rate.losses}-{rate.ties}"
    return [str(rate.n), str(rate.verdicts), rate.text, wins]
