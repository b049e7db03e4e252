"""Benchmark tasks: lm-evaluation-harness's, and what it lacks."""

from mlcalib.evaluation.tasks.catalogue import task_names
from mlcalib.evaluation.tasks.outcome import Generation, Missing, TaskResults
from mlcalib.evaluation.tasks.runner import run_tasks

__all__ = ["Generation", "Missing", "TaskResults", "run_tasks", "task_names"]
