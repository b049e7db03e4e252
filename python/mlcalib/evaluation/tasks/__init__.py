"""Benchmark tasks: those of lm-evaluation-harness, and some that it does not have."""

from mlcalib.evaluation.tasks.catalogue import PERPLEXITY, check_tasks, task_names
from mlcalib.evaluation.tasks.outcome import Missing, TaskResults
from mlcalib.evaluation.tasks.runner import check_data, listed, run_tasks

__all__ = [
    "PERPLEXITY",
    "Missing",
    "TaskResults",
    "check_data",
    "check_tasks",
    "listed",
    "run_tasks",
    "task_names",
]
