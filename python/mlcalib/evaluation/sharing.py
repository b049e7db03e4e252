"""An evaluation over ranks: each measures some models, languages and tasks, and keeps them."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlcalib.calibration_sets import Stream
from mlcalib.common.files import check_folder
from mlcalib.common.ranks import Ranks
from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.scorer import Scorer
from mlcalib.evaluation.subject import Subject
from mlcalib.evaluation.tasks.kept import measured_together, run_subject

Texts = Callable[[Subject], Mapping[str, Stream]]
"""Returns language → text that a model is scored on; none without perplexity."""


@contextmanager
def shared_cache(folder: str | Path | None, ranks: Ranks) -> Iterator[Cache | None]:
    """Give a cache that all ranks read and write; collective.

    Args:
        folder: of the cache; None for one that is removed again, and alone for none.
        ranks: the processes of the run.

    Raises:
        ValueError: not all ranks see one folder.
    """
    if ranks.alone:
        yield None if folder is None else Cache(folder)
        return
    made = None
    if folder is None and ranks.writes:
        made = tempfile.mkdtemp(prefix="mlcalib-evaluation-")
    place = Path(ranks.of_first(made) or str(folder)).expanduser()
    check_seen(place, ranks)
    try:
        yield Cache(place)
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def measure_together(
    subjects: Sequence[Subject],
    texts: Texts,
    scorer: Scorer,
    cache: Cache,
    benchmarks: Sequence[str],
    languages: Sequence[str],
    ranks: Ranks,
    **options: Any,
) -> None:
    """Put into the cache what an evaluation needs; whoever is free takes the next; collective.

    A rank begins with a model that no other has begun, and then helps with the others.

    Args:
        subjects: the models; with fidelity, the others are compared with the first.
        texts: what they are scored on.
        scorer: scores them, and keeps scores in the cache.
        cache: seen by all ranks.
        benchmarks: tasks beside perplexity.
        languages: of the tasks.
        ranks: the processes of the run.
        options: of ``run_subject``.
    """
    name = ranks.of_first(secrets.token_hex(4))
    if scorer.fidelity:
        first = subjects[0]
        _take(_scores(first, texts, scorer), f"{name}/reference", ranks)
        scorer.release(first)
        ranks.wait()
        for _ in scorer.scores(first, texts(first)):  # now known: what others are compared with
            pass
    units = [
        [
            *_scores(subject, texts, scorer),
            *_tasks(subject, cache, benchmarks, languages, options),
        ]
        for subject in subjects
    ]
    while (index := ranks.take(f"{name}/models")) < len(subjects):
        _take(units[index], f"{name}/{index}", ranks)
        scorer.release(subjects[index])
    for index in range(len(subjects)):
        _take(units[index], f"{name}/{index}", ranks)
        scorer.release(subjects[index])
    ranks.wait()


def _take(units: Sequence[Callable[[], None]], name: str, ranks: Ranks) -> None:
    while (index := ranks.take(name)) < len(units):
        units[index]()


def _scores(subject: Subject, texts: Texts, scorer: Scorer) -> list[Callable[[], None]]:
    return [partial(_score, subject, scorer, {code: text}) for code, text in texts(subject).items()]


def _score(subject: Subject, scorer: Scorer, texts: Mapping[str, Stream]) -> None:
    for _ in scorer.scores(subject, texts):
        pass


def _tasks(
    subject: Subject,
    cache: Cache,
    benchmarks: Sequence[str],
    languages: Sequence[str],
    options: Mapping[str, Any],
) -> list[Callable[[], None]]:
    found: list[Callable[[], None]] = []
    for task in benchmarks:
        size = measured_together(task, options.get("limit"))
        for start in range(0, len(languages), size):
            codes = languages[start : start + size]
            found.append(partial(_run, subject, cache, task, codes, options))
    return found


def _run(
    subject: Subject, cache: Cache, task: str, codes: Sequence[str], options: Mapping[str, Any]
) -> None:
    # Whether there are data in any language is told when all of them are looked at.
    with suppress(FileNotFoundError):
        run_subject(subject, cache, [task], codes, progress=False, **options)


def check_seen(folder: Path, ranks: Ranks) -> None:
    """Make sure that a file of rank 0 is there for the others."""
    marker = folder / f".seen-{ranks.of_first(secrets.token_hex(8))}"
    if ranks.writes:
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    ranks.wait()
    seen = ranks.gathered(marker.exists())
    if ranks.writes:
        marker.unlink()
    if not all(seen):
        raise ValueError(
            f"rank {seen.index(False)} does not see {folder} of rank 0; give a folder (--cache, or "
            "--out of a study) that all machines share."
        )
