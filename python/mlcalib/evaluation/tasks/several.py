"""Benchmark tasks on several models, loaded one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcalib.evaluation import evaluation_dtype
from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.subject import Subject
from mlcalib.evaluation.tasks.kept import run_kept
from mlcalib.evaluation.tasks.outcome import TaskResults
from mlcalib.evaluation.tasks.runner import run_tasks
from mlcalib.quantized_model import QuantizedModel


def evaluate_tasks(
    models: "str | Path | QuantizedModel | Sequence[str | Path | QuantizedModel]",
    tasks: str | Sequence[str],
    languages: str | Sequence[str] = "multi10",
    *,
    dtype: str = "auto",
    cache: str | Path | None = None,
    **options: Any,
) -> list[TaskResults]:
    """Run benchmark tasks on models; one result for each, in their order.

    Args:
        models: folders, hub names, GGUF files, or what ``mlcalib.quantize`` returned.
        tasks: as for ``run_tasks``.
        languages: as for ``run_tasks``.
        dtype: of models that are loaded here; ``auto`` is bfloat16 on a CPU with AMX.
        cache: a folder in which results are kept as soon as a task in a language is done, and found
            again; see ``run_kept``. None to keep nothing.
        options: as for ``run_tasks``: ``data``, ``limit``, ``sentencepiece``, ….

    Raises:
        FileNotFoundError, ImportError, ValueError: see ``run_tasks``; there is no such model.
    """
    if isinstance(models, str | Path | QuantizedModel):
        models = [models]
    computed = evaluation_dtype(models, dtype)
    subjects = [Subject(model, computed) for model in models]
    kept = None if cache is None else Cache(cache)
    found = []
    for subject in subjects:
        if kept is None:
            results = run_tasks(
                subject.model,
                subject.tokenizer,
                tasks,
                languages,
                name=subject.name,
                method=subject.method,
                calibration=subject.calibration,
                **options,
            )
        else:
            results = run_kept(subject, kept, tasks, languages, **options)
        found.append(results)
        subject.unload()
    return found
