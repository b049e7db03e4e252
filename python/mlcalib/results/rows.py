"""Tidy results: one number a row; and what each is made of, item by item."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from mlcalib import _core
from mlcalib.common.files import write_json_lines
from mlcalib.common.row_files import file_rows


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


@dataclass(frozen=True)
class ItemScores:
    """What a score is made of, item by item, or why there is none.

    Items are in the order of the data, which is the same for every model. The score is the sum of
    the values over that of the sizes, and perplexity the exponential of that; a corpus score
    (chrF++) is near to it only.

    Attributes:
        model: as in ``Row``, likewise ``method``, ``calibration``, ``language``, ``task`` and
            ``metric``.
        values: 1 right and 0 wrong, the score of a text alone, or the sum over a document (loss in
            nats); None for an item that says nothing.
        sizes: scored tokens of each document; None for 1 each.
        missing: why there is no score, e.g. ``no task (try afrixnli)``; without a metric it holds
            for the whole task.
    """

    model: str
    method: str
    calibration: str
    language: str
    task: str
    metric: str | None
    values: Sequence[float | None]
    sizes: Sequence[int] | None = None
    missing: str = ""


class Results(list[Row]):
    """Rows, with what they are made of.

    Attributes:
        items: in any order.
    """

    def __init__(self, rows: Iterable[Row] = (), items: Iterable[ItemScores] = ()) -> None:
        super().__init__(rows)
        self.items = list(items)


def joined(results: Iterable[Results]) -> Results:
    """Return the results of several runs as one."""
    parts = list(results)
    return Results(
        (row for part in parts for row in part), (each for part in parts for each in part.items)
    )


def versions(*packages: str) -> str:
    """Return the versions of mlcalib, torch, transformers and other packages, for ``Row``."""
    names = ("torch", "transformers", *packages)
    found = [("mlcalib", _core.build_info()["version"]), *((name, version(name)) for name in names)]
    return ", ".join(f"{name} {number}" for name, number in found)


def write_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as JSON lines; all of them or nothing."""
    write_json_lines(map(asdict, rows), path)


def read_rows(path: str | Path) -> list[Row]:
    """Read what ``write_rows`` wrote, now or before rows had a seed and versions.

    Raises:
        ValueError: a line that is not a row; names it.
    """
    return _read(path, Row, "a row of results")


def write_results(results: Results, path: str | Path) -> Path:
    """Write rows as JSON lines, and their items likewise beside them; return the items' path."""
    beside = items_path(path)
    write_json_lines(map(asdict, results.items), beside)
    write_json_lines(map(asdict, results), path)
    return beside


def read_results(path: str | Path) -> Results:
    """Read rows, and their items where these lie beside them.

    Raises:
        FileNotFoundError: there are no rows.
        ValueError: a line that is not what it should be, or items of other rows; names the file.
    """
    rows, beside = read_rows(path), items_path(path)
    if not beside.is_file():
        return Results(rows)
    results = Results(rows, _read(beside, ItemScores, "items of a result"))
    counts = {_cell(row): row.n for row in rows}
    for each in results.items:
        if not each.missing and counts.get(_cell(each)) != _size(each):
            raise ValueError(
                f"{beside} has {_size(each):,} items or tokens of {each.task} in "
                f"'{each.language}', {each.model}, and {path} says {counts.get(_cell(each), 0):,}; "
                "they are of two runs. Evaluate again, or remove the items to do without tests."
            )
    return results


def items_path(path: str | Path) -> Path:
    """Return where the items of ``rows.jsonl`` are: ``rows.items``, which no ``*.jsonl`` finds."""
    return Path(path).with_suffix(".items")


def _size(items: ItemScores) -> int:
    """Return what ``n`` of the row is: tokens of documents, or items that say something."""
    if items.sizes is not None:
        return sum(items.sizes)
    return sum(value is not None for value in items.values)


def _cell(each: Row | ItemScores) -> tuple[str | None, ...]:
    return each.model, each.method, each.calibration, each.language, each.task, each.metric


_Record = TypeVar("_Record", Row, ItemScores)


def _read(path: str | Path, kind: type[_Record], what: str) -> list[_Record]:
    records = []
    for where, row in file_rows(Path(path)):
        try:
            records.append(kind(**row))
        except TypeError as error:
            raise ValueError(f"{where}, is not {what}: {error}.") from error
    return records
