"""The benchmark tasks of ``mlcalib evaluate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlcalib.results import Results

PERPLEXITY = "perplexity"

Tasks = Annotated[
    str,
    typer.Option(
        help="Tasks with commas: perplexity; xnli, xstorycloze, xcopa, belebele, afrixnli, "
        "afrimmlu, global_mmlu, global_mmlu_full, mmmlu, mgsm, mgsm_native_cot, flores, xlsum, "
        "language_confusion, dolly, which need the extra eval."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Read the data sets of benchmark tasks from this folder, "
        "TASK/LANGUAGE/SPLIT.jsonl or .parquet, and not from the Hugging Face hub."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Items per benchmark task and language, the first so many. Default: all."),
]
SentencePiece = Annotated[
    Path | None, typer.Option(help="The SentencePiece model that spBLEU needs.")
]
Generations = Annotated[
    Path | None,
    typer.Option(help="Write what models generate to NUMBER-MODEL/TASK.jsonl in this folder."),
]


def split_tasks(tasks: str, *, needing: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether perplexity is asked for, and the other tasks.

    Args:
        tasks: names with commas.
        needing: options given that need perplexity.

    Raises:
        ValueError: an unknown task, or no perplexity where an option needs it.
    """
    from mlcalib.evaluation.tasks import check_tasks

    names = list(dict.fromkeys(name.strip() for name in tasks.split(",")))
    others = [name for name in names if name != PERPLEXITY]
    check_tasks(others)
    if needing and PERPLEXITY not in names:
        raise ValueError(
            f"{needing[0]} needs the task perplexity, but the tasks are {', '.join(names)}; add it."
        )
    return PERPLEXITY in names, others


def run_benchmarks(
    models: Sequence[str],
    tasks: Sequence[str],
    languages: str,
    *,
    data: Path | None,
    limit: int | None,
    sentencepiece: Path | None,
    dtype: str,
    cache: Path | None,
    generations: Path | None,
) -> tuple["Results", str]:
    """Run tasks on models; return the results, and them as a table."""
    from mlcalib.evaluation.tasks import evaluate_tasks
    from mlcalib.report import markdown
    from mlcalib.report.tasks import task_table
    from mlcalib.results import joined

    results = evaluate_tasks(
        models,
        tasks,
        languages,
        dtype=dtype,
        cache=cache,
        data=data,
        limit=limit,
        sentencepiece=sentencepiece,
    )
    rows = joined(each.results for each in results)
    missing = {
        (cell.task, cell.language, cell.metric): str(cell)
        for each in results
        for cell in each.missing
    }
    if generations is not None:
        for number, each in enumerate(results, start=1):
            each.write_generations(generations / f"{number}-{Path(each.model).name}")
    return rows, markdown(task_table(rows, missing))
