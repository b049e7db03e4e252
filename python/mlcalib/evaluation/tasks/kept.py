"""Benchmark tasks whose results are kept, a task and a language at a time."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.subject import Subject
from mlcalib.evaluation.tasks.catalogue import check_tasks, find_task
from mlcalib.evaluation.tasks.outcome import Missing, TaskResults
from mlcalib.evaluation.tasks.runner import codes, listed, run_tasks
from mlcalib.results import Row, versions

_log = logging.getLogger(__name__)


def run_subject(
    subject: Subject,
    cache: Cache | None,
    tasks: str | Sequence[str],
    languages: str | Sequence[str],
    **options: Any,
) -> TaskResults:
    """Run benchmark tasks as ``run_tasks`` does; with a cache, only what it does not hold.

    A result is named by the content of the model and of the task's data folder, the options and the
    versions. Data sets of the hub are taken not to change. A model of which everything is known is
    not loaded.

    Args:
        subject: the model.
        cache: results are put there as soon as a task in a language is done; None to keep nothing.
        tasks: as for ``run_tasks``, likewise ``languages`` and ``options``.
        languages: a set or codes.
        options: by name; ``name``, ``method`` and ``calibration`` are by default the model's.

    Raises:
        FileNotFoundError, ImportError, ValueError: see ``run_tasks``.
    """
    origin = {
        "name": subject.name,
        "method": subject.method,
        "calibration": subject.calibration,
    }
    options = origin | options
    if cache is None:
        return run_tasks(subject.model, subject.tokenizer, tasks, languages, **options)
    check_tasks(listed(tasks))
    results = TaskResults(
        options["name"], options["method"], options["calibration"], options.get("seed", 0)
    )
    for task in listed(tasks):
        lacking: dict[str, str] = {}
        data = _data(cache, task, options.get("data"))
        measured = False
        for code in codes(languages):
            key = {**_key(subject, cache, options), "of": task, "language": code, "data": data}
            if (value := cache.get(key)) is None:
                value = _measured(subject, task, code, options)
                if "lacking" not in value or options.get("data") is not None:  # not the network's
                    cache.put(key, value)
            if "lacking" in value:
                lacking[code] = value["lacking"]
            else:
                _add(value, results)
                measured |= bool(value["rows"] or value["generations"])
        if lacking and not measured:
            raise FileNotFoundError(next(iter(lacking.values())))
        for code, cause in lacking.items():
            _log.warning("%s", cause)
            results.missing.append(Missing(task, code, None, "no data file"))
    return results


def _measured(subject: Subject, task: str, code: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        found = run_tasks(subject.model, subject.tokenizer, [task], [code], **options)
    except FileNotFoundError as error:
        return {"lacking": str(error)}
    return {
        "rows": [asdict(row) for row in found.rows],
        "items": found.items,
        "generations": {
            name: {code: [asdict(each) for each in texts] for code, texts in languages.items()}
            for name, languages in found.generations.items()
        },
        "missing": [asdict(cell) for cell in found.missing],
    }


def _add(value: dict[str, Any], results: TaskResults) -> None:
    """Add what was kept, under the name that the model has today."""
    source: dict[str, Any] = {
        "model": results.model,
        "method": results.method,
        "calibration": results.calibration,
    }
    results.rows += [replace(Row(**row), **source) for row in value["rows"]]
    for name, languages in value["items"].items():
        results.items.setdefault(name, {}).update(languages)
    for name, languages in value["generations"].items():
        for code, texts in languages.items():
            kept = ((each["prompt"], each["output"], each["reference"]) for each in texts)
            results.add_generations(name, code, kept)
    results.missing += [
        Missing(**{**cell, "fillers": tuple(cell["fillers"])}) for cell in value["missing"]
    ]


def _key(subject: Subject, cache: Cache, options: dict[str, Any]) -> dict[str, Any]:
    """Return what names the results of a model, whatever the task."""
    encoder = options.get("sentencepiece")
    others = ("data", "sentencepiece", "progress", "name", "method", "calibration")
    return {
        "task": "benchmarks",
        "model": subject.fingerprint(cache),
        "sentencepiece": None if encoder is None else cache.sha256(encoder),
        "options": {
            name: value
            for name, value in options.items()
            if name not in others and value is not None
        },
        "versions": versions("lm_eval", "sacrebleu", "py3langid"),
    }


def _data(cache: Cache, task: str, folder: str | Path | None) -> str | dict[str, str]:
    """Return what names the data of a task: the content of its files, or its place on the hub."""
    found = find_task(task)
    if folder is None:
        return f"hub:{found.hub}"
    root = Path(folder) / found.folder
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): cache.sha256(path) for path in files}
