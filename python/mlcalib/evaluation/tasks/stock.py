"""Runs the task files of lm-evaluation-harness, on local data or on that of the hub."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from mlcalib.common import compat
from mlcalib.common.optional import optional
from mlcalib.common.sha256 import json_sha256
from mlcalib.evaluation.tasks.catalogue import Task
from mlcalib.evaluation.tasks.data import from_hub, local_file, missing_file, read_rows
from mlcalib.languages import Language

if TYPE_CHECKING:
    from mlcalib.evaluation.tasks.model import TaskModel

Sample = dict[str, Any]

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class StockTask:
    """A task of lm-eval for one language.

    Attributes:
        task: which.
        language: which.
        files: lm-eval's task files, several where it has one per subject.
    """

    task: Task
    language: Language
    files: tuple[Path, ...]


def stock_task(task: Task, language: Language) -> StockTask | None:
    """Return lm-eval's task files for a language, or None if it has none.

    Raises:
        ImportError: lm-eval is not installed.
    """
    code = task.code(language)
    if code is None:
        return None
    root = Path(optional("lm_eval", "eval", f"The task '{task.name}'").__path__[0]) / "tasks"
    for pattern in task.files:
        if files := sorted(root.glob(pattern.replace("{}", code))):
            return StockTask(task, language, tuple(files))
    return None


def stock_data(stock: StockTask, data: Path) -> Path:
    """Return the local file that a task scores.

    Raises:
        FileNotFoundError: it does not exist; the message says where to get it.
    """
    task, language = stock.task, stock.language
    split = _scored(_splits(stock.files[0]))
    path = local_file(data, task, language, split)
    if path is None:
        where = data / task.folder / str(task.code(language)) / f"{split}.jsonl"
        raise missing_file(where, task, language)
    return path


def run_stock(
    lm: "TaskModel", tasks: Sequence[StockTask], data: Path | None, limit: int | None
) -> list[list[Sample]]:
    """Run several tasks together, so that their requests share batches.

    Args:
        lm: the model.
        tasks: what to run.
        data: folder with local data; None for the hub's.
        limit: items per task file, the first so many.

    Returns:
        For each task what lm-eval records per item and filter: ``doc``, ``target``, ``resps``,
        ``filter`` and the item's metrics; task files in the order of their names.

    Raises:
        ConnectionError: the hub cannot be reached, and its cache lacks the data.
        FileNotFoundError: a file is missing in ``data``.
        ValueError: a file is not what the task reads.
    """
    with TemporaryDirectory() as folder, _quiet():
        names = [_write(Path(folder), task, data) for task in tasks]
        flat = [name for each in names for name in each]
        hub = contextlib.nullcontext() if data is not None else from_hub(", ".join(_named(tasks)))
        with hub:
            samples = compat.run_task_files(lm, folder, flat, limit)
    return [[sample for name in each for sample in samples[name]] for each in names]


def _named(tasks: Sequence[StockTask]) -> list[str]:
    return list(dict.fromkeys(each.task.name for each in tasks))


def _write(folder: Path, stock: StockTask, data: Path | None) -> list[str]:
    """Write a task file that includes each of lm-eval's; return the tasks' names."""
    task, language, files = stock.task, stock.language, list(stock.files)
    changes: dict[str, Any] = {}
    if data is not None:
        path = stock_data(stock, data)
        # Lm-eval's tasks in ca, eu and gl read data sets of their own, some with other fields.
        first = task.files[0].replace("{}", str(task.code(language)))
        rows = read_rows(path, task.fields if files[0].match(first) else ())
        if task.subject is not None:
            files = _with_rows(stock, [str(row[task.subject]) for row in rows], path)
        changes = _local(stock, data, path, folder)
    if task.metrics == ("acc",):  # not F1, for which the harness asks the hub
        changes["metric_list"] = [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        ]
    names = []
    for file in files:
        name = f"mlcalib_{task.name}_{language.code}_{file.stem}"
        content = {"include": str(file), "task": name, "num_fewshot": 0, "tag": None} | changes
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        names.append(name)
    return names


def _splits(file: Path) -> dict[str, str | None]:
    """Return which splits a task file of lm-eval names."""
    with TemporaryDirectory() as alone:
        (Path(alone) / "task.yaml").write_text(yaml.safe_dump({"include": str(file)}))
        config = compat.read_task_file(alone)
    return {key: config.get(key) for key in _SPLITS}


def _scored(splits: dict[str, str | None]) -> str:
    return str(splits["test_split"] or splits["validation_split"])


def _local(stock: StockTask, data: Path, path: Path, folder: Path) -> dict[str, Any]:
    """Return what makes a task read local files: those of its splits that are there.

    ``datasets`` takes ``?``, ``*`` and ``[`` in a path for a pattern, so it is given links.
    """
    splits = _splits(stock.files[0])
    files = {_scored(splits): path}
    for split in filter(None, splits.values()):
        other = local_file(data, stock.task, stock.language, split)
        if split not in files and other and other.suffix == path.suffix:
            files[split] = other
    return {
        "dataset_path": "parquet" if path.suffix == ".parquet" else "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: _link(file, folder) for split, file in files.items()},
            "cache_dir": str(folder / "cache"),
        },
        **{key: split if split in files else None for key, split in splits.items()},
    }


def _link(file: Path, folder: Path) -> str:
    """Return the path of a link to a file, whose name is its path's sha256."""
    link = folder / f"{json_sha256(str(file.resolve()))}{file.suffix}"
    if not link.is_symlink():
        link.symlink_to(file.resolve())
    return str(link)


def _with_rows(stock: StockTask, given: Sequence[str], path: Path) -> list[Path]:
    """Return the task files, one per subject, whose subject has rows."""
    code = str(stock.task.code(stock.language))
    prefix = Path(stock.task.files[0]).name.replace("{}", code).partition("*")[0]
    files = {file.stem.removeprefix(prefix): file for file in stock.files}
    # MMMLU has file names in places: "virology_test.csv_sw-KE.csv".
    subjects = {each.partition("_test")[0].lower().replace(" ", "_"): each for each in given}
    if unknown := sorted(subjects.keys() - files.keys()):
        raise ValueError(
            f"{path}: '{stock.task.subject}' is '{subjects[unknown[0]]}', which is no subject of "
            f"{stock.task.name}; those are: {', '.join(files)}."
        )
    return [file for subject, file in files.items() if subject in subjects]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness and ``datasets`` from telling each of the many small things they do."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with compat.no_task_bars(), quiet_harness():
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Show errors of lm-eval only: it warns of what mlcalib does on purpose."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
