"""Results as rows of one number each, and the items that each number is computed from."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlcalib import _core
from mlcalib.common.checked import as_type
from mlcalib.common.errors import printable
from mlcalib.common.files import write_json_lines
from mlcalib.common.row_files import file_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        model: the model as it was given.
        method: the name of the quantizer, or ``float``.
        calibration: the name of the calibration set, or ``none``.
        language: the code of the language.
        task: what the model was measured on, e.g. ``perplexity`` or ``xnli``.
        metric: what was measured, e.g. ``bits_per_byte`` or ``acc``.
        value: the number.
        stderr: its standard error, in the unit of the value; None if there is none.
        n: the number of scored tokens (or items, or documents).
        seed: the seed of random draws; None if nothing was drawn.
        versions: what computed it, e.g. ``mlcalib 0.1.0, torch 2.13.0``; empty if not known.
        windows: what every window of text began with, e.g. ``bos <s>``; empty for nothing.
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
    windows: str = ""

    def record(self) -> dict[str, Any]:
        """Return the row as it is written; without ``windows`` where it is empty."""
        found = asdict(self)
        if not self.windows:
            del found["windows"]
        return found


@dataclass(frozen=True)
class ItemScores:
    """The items that a score is computed from, or the reason why there is no score.

    Items are in the order of the data, which is the same for every model. The score is the sum of
    the values over the sum of the sizes, and perplexity is the exponential of that. A corpus score
    (chrF++) is only close to it.

    Attributes:
        model: see ``Row``, also for ``method``, ``calibration``, ``language``, ``task`` and
            ``metric``.
        values: for each item 1 (right) or 0 (wrong), the score of a single text, or the sum over a
            document (of the loss in nats); None for an item without a score.
        sizes: the scored tokens of each document; None if every item counts as 1.
        missing: why there is no score, e.g. ``no task (try afrixnli)``. If ``metric`` is None, this
            holds for the whole task.
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
    """Rows, with the items that they are computed from. A notebook shows them as tables.

    Attributes:
        items: the items, in any order.
    """

    def __init__(self, rows: Iterable[Row] = (), items: Iterable[ItemScores] = ()) -> None:
        super().__init__(rows)
        self.items = list(items)

    def to_pandas(self) -> "DataFrame":
        """Return the rows as a DataFrame: a line for each, a column for each field of ``Row``.

        Raises:
            ImportError: pandas is not installed.
        """
        from mlcalib.results.show import frame

        return frame(self)

    def pivot(self, metric: str | None = None, task: str | None = None) -> "DataFrame":
        """Return the values of one metric as a DataFrame: languages down, models across.

        Args:
            metric: e.g. ``bits_per_byte``; None for that of the first row.
            task: None for all tasks that have the metric; with several the index is (task,
                language).

        Returns:
            float64 [languages, models], in the unit of the rows; NaN where nothing was measured.

        Raises:
            ImportError: pandas is not installed.
            ValueError: there are no such rows, or two rows of one model, language and task.
        """
        from mlcalib.results.show import pivot

        return pivot(self, metric, task)

    def plot(self, metric: str | None = None, task: str | None = None) -> "Figure":
        """Draw one metric: languages across, a colour for each model, with standard errors.

        Args:
            metric: e.g. ``bits_per_byte``; None for that of the first row.
            task: None for all tasks that have the metric, in a panel each.

        Returns:
            A figure, which a notebook shows, and ``savefig`` writes. Shares are in per cent.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there are no such rows, or two rows of one model, language and task.
        """
        from mlcalib.results.show import plot

        return plot(self, metric, task)

    def __repr__(self) -> str:
        from mlcalib.results.show import headline

        return headline(self)

    def _repr_html_(self) -> str:
        from mlcalib.results.show import as_html

        return as_html(self)


def joined(results: Iterable[Results]) -> Results:
    """Return the results of several runs as one object."""
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
    """Write rows as JSON lines, either all of them or none."""
    write_json_lines(map(Row.record, rows), path)


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows that ``write_rows`` wrote; a row may lack ``seed`` and ``versions``.

    Raises:
        ValueError: a line is not a row; the message names the line.
    """
    return _read(path, Row, "a row of results")


def write_results(results: Results, path: str | Path) -> Path:
    """Write rows as JSON lines, and their items beside them; return the path of the items."""
    beside = items_path(path)
    write_json_lines(map(asdict, results.items), beside)
    write_json_lines(map(Row.record, results), path)
    return beside


def read_results(path: str | Path) -> Results:
    """Read rows, and their items if these are beside them.

    Raises:
        FileNotFoundError: the file of the rows does not exist.
        ValueError: a line is not a row or an item, or the items belong to other rows; the message
            names the file.
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
    """Return the path of the items beside ``rows.jsonl``: ``rows.items``."""
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
            records.append(kind(**row))  # which refuses other fields
            as_type(row, kind)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}, is not {what}: {printable(str(error))}.") from error
    return records
