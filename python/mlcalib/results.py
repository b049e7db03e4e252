"""Tidy results: one number a row."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from mlcalib import _core
from mlcalib.files import atomic_file


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        model: the model as it was given.
        method: quantizer, or ``float``.
        calibration: name of the calibration set, or ``none``.
        language: code.
        task: what was measured on.
        metric: what was measured.
        value: the number.
        stderr: its standard error, in the same unit; None where there is none.
        n: number of scored tokens (or items, or documents).
        seed: of what was drawn at random; None where nothing was.
        versions: what computed it, e.g. ``mlcalib 0.1.0, torch 2.13.0``; empty if unknown.
    """

    model: str
    method: str
    calibration: str
    language: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    seed: int | None = None
    versions: str = ""


def versions(*packages: str) -> str:
    """Return the versions of mlcalib, torch, transformers and other packages, for ``Row``."""
    names = ("torch", "transformers", *packages)
    found = [("mlcalib", _core.build_info()["version"]), *((name, version(name)) for name in names)]
    return ", ".join(f"{name} {number}" for name, number in found)


def write_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as JSON lines; all of them or nothing."""
    lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows]
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_rows(path: str | Path) -> list[Row]:
    """Read what ``write_rows`` wrote, now or before rows had a seed and versions.

    Raises:
        ValueError: a line that is not a row; names it.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(Row(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}, is not a row of results: {error}.") from error
    return rows
