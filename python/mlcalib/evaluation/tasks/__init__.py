"""Benchmark tasks: lm-evaluation-harness's, and what it lacks."""

from mlcalib.evaluation.tasks.catalogue import check_tasks, task_names
from mlcalib.evaluation.tasks.outcome import Missing, TaskResults
from mlcalib.evaluation.tasks.runner import run_tasks
from mlcalib.evaluation.tasks.several import evaluate_tasks

__all__ = [
    "Missing",
    "TaskResults",
    "check_tasks",
    "evaluate_tasks",
    "run_tasks",
    "task_names",
]
