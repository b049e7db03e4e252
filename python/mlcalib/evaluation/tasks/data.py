"""Reads the rows of a data set from local files or from the hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcalib.common.errors import printable
from mlcalib.common.optional import optional
from mlcalib.common.row_files import file_rows
from mlcalib.evaluation.tasks.catalogue import Task
from mlcalib.languages import Language

JsonRow = dict[str, Any]

SUFFIXES = (".jsonl", ".json", ".parquet")


def local_file(data: Path, task: Task, language: Language, split: str | None = None) -> Path | None:
    """Return the file with a language's split: ``FOLDER/CODE/SPLIT.jsonl``, .json or .parquet.

    The split that is scored may also be ``FOLDER/CODE.jsonl``. CODE is the name of the language in
    the data set, or its code in mlcalib.
    """
    wanted = split or task.split
    for code in dict.fromkeys((task.code(language), language.code)):
        for suffix in SUFFIXES:
            path = data / task.folder / str(code) / f"{wanted}{suffix}"
            if path.is_file():
                return path
            path = data / task.folder / f"{code}{suffix}"
            if path.is_file() and wanted == task.split:
                return path
    return None


def missing_file(where: Path, task: Task, language: Language) -> FileNotFoundError:
    """Return an error that says which file was looked for, and where to get it."""
    return FileNotFoundError(
        f"task '{task.name}', language '{language.code}': there is no {where} (nor .json "
        f"or .parquet). Save the split '{task.split}' of the Hugging Face data set {task.hub}, for "
        f"'{task.code(language)}', there; or leave the language or the task out, or run without a "
        "data folder."
    )


def read_rows(path: Path, fields: Sequence[str]) -> list[JsonRow]:
    """Read JSONL, a JSON array or Parquet.

    Raises:
        ImportError, ValueError: see ``file_rows``.
        ValueError: a row lacks one of ``fields``, or there is no row.
    """
    rows = []
    for where, row in file_rows(path):
        if lacking := [field for field in fields if field not in row]:
            raise ValueError(
                f"{where}, has no field '{lacking[0]}'; it has: "
                f"{printable(', '.join(row)) or 'none'}. Expected are the data set's own: "
                f"{', '.join(fields)}."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def hub_rows(task: Task, configuration: str | None, **options: Any) -> list[JsonRow]:
    """Read a split from the hub, or from its cache where the hub cannot be reached.

    Raises:
        ConnectionError: it is in neither.
        ImportError: ``datasets`` is not installed.
    """
    datasets = optional("datasets", "eval", f"The task '{task.name}'")
    with from_hub(task.name):
        return list(datasets.load_dataset(task.hub, configuration, split=task.split, **options))


@contextmanager
def from_hub(tasks: str) -> Iterator[None]:
    """Say what to do, inside, where the data of tasks can neither be fetched nor is cached.

    Raises:
        ConnectionError: of what ``datasets`` raises then.
    """
    try:
        yield
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and "Couldn't find cache" not in str(error):
            raise
        raise ConnectionError(
            f"The data of {tasks} is not in the hub's cache on this machine, and cannot be fetched "
            f"({error}). Give a folder with local files (--data FOLDER; docs/how-to/benchmarks.md "
            "says how they are laid out), or run the task once where there is a network."
        ) from error
