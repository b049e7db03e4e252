"""Runs benchmark tasks and keeps their results, for each task and language."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.subject import Subject
from mlcalib.evaluation.tasks.catalogue import check_tasks, find_task
from mlcalib.evaluation.tasks.outcome import Missing, TaskResults
from mlcalib.evaluation.tasks.runner import NO_FILE, codes, lacking_data, listed, run_tasks
from mlcalib.results.rows import Row, versions

_log = logging.getLogger(__name__)

_PROMPTS = 256
"""That are generated together, over languages: several batches."""


@dataclass(frozen=True)
class _Text:
    prompt: str
    output: str
    reference: str | None


@dataclass(frozen=True)
class _Measured:
    """What is kept of a task in a language."""

    rows: list[Row]
    items: dict[str, dict[str, list[float | None]]]
    generations: dict[str, dict[str, list[_Text]]]
    missing: list[Missing]


@dataclass(frozen=True)
class _Lacking:
    """Why nothing was measured."""

    lacking: str


KEPT = _Lacking | _Measured
"""The type of what the cache has of a task in a language."""


def run_subject(
    subject: Subject,
    cache: Cache | None,
    tasks: str | Sequence[str],
    languages: str | Sequence[str],
    **options: Any,
) -> TaskResults:
    """Run benchmark tasks as ``run_tasks`` does, but with a cache only what it does not have.

    A result is found again by the content of the model and of the task's data folder, the options
    and the versions. Data sets of the hub are assumed not to change. A model whose results are all
    known is not loaded.

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
        measured = False
        for code, value in _values(subject, cache, task, codes(languages), options).items():
            if isinstance(value, _Lacking):
                lacking[code] = value.lacking
            else:
                add_kept(value, results)
                measured |= bool(value.rows or value.generations)
        if lacking and not measured:
            raise FileNotFoundError(next(iter(lacking.values())))
        for code, cause in lacking.items():
            _log.warning("%s", cause)
            results.missing.append(Missing(task, code, None, NO_FILE))
    return results


def _values(
    subject: Subject, cache: Cache, task: str, languages: list[str], options: dict[str, Any]
) -> dict[str, _Lacking | _Measured]:
    """Return of each language what is kept, measured where it is not there yet."""
    model = {**_key(subject, cache, options), "of": task}
    data = _data(cache, task, options.get("data"))
    keys = {code: {**model, "language": code, "data": data} for code in languages}
    values = {
        code: kept for code, key in keys.items() if (kept := cache.get(key, KEPT)) is not None
    }
    unknown = [code for code in languages if code not in values]
    size = measured_together(task, options.get("limit"))
    for start in range(0, len(unknown), size):
        found = _measured(subject, task, unknown[start : start + size], options)
        for code, value in found.items():
            values[code] = value
            if isinstance(value, _Measured) or options.get("data") is not None:  # not the network's
                cache.put(keys[code], asdict(value))
    return {code: values[code] for code in languages}


def measured_together(task: str, limit: int | None) -> int:
    """Return how many languages are measured at once: where texts are generated, few fill no batch.

    What is measured at once is lost at once if the evaluation is stopped.
    """
    scored = find_task(task).kind == "choice"
    return 1 if scored or limit is None else max(1, _PROMPTS // limit)


def _measured(
    subject: Subject, task: str, languages: list[str], options: dict[str, Any]
) -> dict[str, _Lacking | _Measured]:
    found: dict[str, _Lacking | _Measured] = {}
    there = []
    for code in languages:
        if cause := lacking_data(task, code, options.get("data")):
            found[code] = _Lacking(cause)
        else:
            there.append(code)
    if there:
        try:
            results = run_tasks(subject.model, subject.tokenizer, [task], there, **options)
            found |= {code: _of_language(results, code) for code in there}
        except FileNotFoundError as error:  # the hub's, of all of them
            found |= {code: _Lacking(str(error)) for code in there}
    return found


def _of_language(results: TaskResults, code: str) -> _Lacking | _Measured:
    missing = [cell for cell in results.missing if cell.language == code]
    if any(cell.reason == NO_FILE for cell in missing):  # the hub's, of some of them
        return _Lacking("; ".join(map(str, missing)))
    return _Measured(
        rows=[row for row in results.rows if row.language == code],
        items={
            name: {code: languages[code]}
            for name, languages in results.items.items()
            if code in languages
        },
        generations={
            name: {
                code: [_Text(each.prompt, each.output, each.reference) for each in languages[code]]
            }
            for name, languages in results.generations.items()
            if code in languages
        },
        missing=missing,
    )


def add_kept(value: _Measured, results: TaskResults) -> None:
    """Add what was kept, under the name that the model has today."""
    source: dict[str, Any] = {
        "model": results.model,
        "method": results.method,
        "calibration": results.calibration,
    }
    results.rows += [replace(row, **source) for row in value.rows]
    for name, languages in value.items.items():
        results.items.setdefault(name, {}).update(languages)
    for name, texts in value.generations.items():
        for code, kept in texts.items():
            triples = ((each.prompt, each.output, each.reference) for each in kept)
            results.add_generations(name, code, triples)
    results.missing += value.missing


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
    root = Path(folder).expanduser() / found.folder
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): cache.sha256(path) for path in files}
