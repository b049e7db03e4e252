"""The benchmark tasks of ``mlcalib evaluate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlcalib.evaluation import Evaluation

Tasks = Annotated[
    str,
    typer.Option(
        help="The tasks, separated by commas: perplexity; and xnli, xstorycloze, xcopa, belebele, "
        "afrixnli, afrimmlu, global_mmlu, global_mmlu_full, mmmlu, mgsm, mgsm_native_cot, flores, "
        "xlsum, language_confusion and dolly, which need the extra eval."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Read the data of benchmark tasks from this folder (TASK/LANGUAGE/SPLIT.jsonl or "
        ".parquet) instead of from the Hugging Face hub."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Use only the first LIMIT items of each benchmark task and language. By default all."
    ),
]
SentencePiece = Annotated[
    Path | None, typer.Option(help="The file of the SentencePiece model that spBLEU needs.")
]
Generations = Annotated[
    Path | None,
    typer.Option(
        help="Write the texts that models generate to NUMBER-MODEL/TASK.jsonl in this folder."
    ),
]


def check_needs(tasks: str, *, needing: Sequence[str]) -> bool:
    """Return whether perplexity is among the tasks.

    Args:
        tasks: names, separated by commas.
        needing: those of the given options that need perplexity.

    Raises:
        ValueError: an unknown task, or no perplexity where an option needs it.
    """
    from mlcalib.evaluation.tasks import PERPLEXITY, check_tasks, listed

    names = listed(tasks)
    check_tasks([name for name in names if name != PERPLEXITY])
    if needing and PERPLEXITY not in names:
        raise ValueError(
            f"{needing[0]} needs the task perplexity, but the tasks are {', '.join(names)}; add it."
        )
    return PERPLEXITY in names


def benchmark_table(results: "Evaluation") -> str:
    """Return the scores of benchmark tasks as a table."""
    from mlcalib.report import markdown
    from mlcalib.report.tables.tasks import task_table

    missing = {
        (cell.task, cell.language, cell.metric): str(cell)
        for each in results.tasks
        for cell in each.missing
    }
    return markdown(task_table([row for each in results.tasks for row in each.rows], missing))


def write_generations(results: "Evaluation", folder: Path) -> None:
    """Write the generated texts, for ``mlcalib judge`` and ``mlcalib annotate``."""
    for number, each in enumerate(results.tasks, start=1):
        each.write_generations(folder / f"{number}-{Path(each.model).name}")
