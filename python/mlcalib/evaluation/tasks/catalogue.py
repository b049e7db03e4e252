"""The benchmark tasks, and the name that each gives to a language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlcalib.common.registry import unknown
from mlcalib.languages import Language, languages

PERPLEXITY = "perplexity"
"""The one task that is not a benchmark; it scores plain text."""

Kind = Literal["choice", "answer", "translation", "summary", "confusion", "prompts"]


@dataclass(frozen=True)
class Task:
    """A benchmark task.

    Attributes:
        name: the name of the task in mlcalib.
        kind: tasks of the kinds ``choice`` (by the likelihood of choices) and ``answer`` (by
            generation) are run by lm-eval with its own task files. For the other kinds mlcalib
            generates texts and scores them.
        benchmark: the key of ``Language.benchmarks`` (or ``flores``) whose value names the
            language.
        folder: the name of the data set, and of its folder in a data directory.
        split: the split that is scored.
        fields: the fields that a row must have.
        hub: the data set on the Hugging Face hub.
        files: for ``choice`` and ``answer``, the task files of lm-eval, relative to its ``tasks``,
            with ``{}`` for the language and ``*`` if there is one file for each subject.
        subject: the field by which lm-eval picks the rows of a subject, if it has a task for each.
        metrics: lm-eval's metrics of an item; the first one decides right or wrong.
        fillers: similar tasks, which may have other languages.
    """

    name: str
    kind: Kind
    benchmark: str
    folder: str
    split: str
    fields: tuple[str, ...]
    hub: str
    files: tuple[str, ...] = ()
    subject: str | None = None
    metrics: tuple[str, ...] = ("acc",)
    fillers: tuple[str, ...] = ()

    def code(self, language: Language) -> str | None:
        """Return the name of the language in the data set, or None if it is not there."""
        if self.benchmark == "flores":
            return language.flores
        return language.benchmarks.get(self.benchmark)


_MMLU = ("question", "option_a", "option_b", "option_c", "option_d", "answer")

_ALL = (
    Task(
        "xnli",
        "choice",
        "xnli",
        "xnli",
        "validation",
        ("premise", "hypothesis", "label"),
        "facebook/xnli",
        ("xnli/xnli_{}.yaml", "xnli_eu/xnli_{}.yaml", "*_bench/xnli_{}.yaml"),
        fillers=("afrixnli",),
    ),
    Task(
        "xstorycloze",
        "choice",
        "xstorycloze",
        "xstorycloze",
        "eval",
        (
            *(f"input_sentence_{number}" for number in range(1, 5)),
            "sentence_quiz1",
            "sentence_quiz2",
            "answer_right_ending",
        ),
        "juletxara/xstory_cloze",
        ("xstorycloze/default_{}.yaml", "*_bench/xstorycloze_{}.yaml"),
        fillers=("xcopa", "belebele"),
    ),
    Task(
        "xcopa",
        "choice",
        "xcopa",
        "xcopa",
        "test",
        ("premise", "choice1", "choice2", "question", "label"),
        "cambridgeltl/xcopa",
        ("xcopa/default_{}.yaml", "*_bench/xcopa_{}.yaml"),
        fillers=("xstorycloze", "belebele"),
    ),
    Task(
        "belebele",
        "choice",
        "belebele",
        "belebele",
        "test",
        (
            "flores_passage",
            "question",
            *(f"mc_answer{number}" for number in range(1, 5)),
            "correct_answer_num",
        ),
        "facebook/belebele",
        ("belebele/belebele_{}.yaml", "*_bench/belebele_{}.yaml"),
        metrics=("acc", "acc_norm"),
    ),
    Task(
        "afrixnli",
        "choice",
        "afrixnli",
        "afrixnli",
        "test",
        ("premise", "hypothesis", "label"),
        "masakhane/afrixnli",
        ("afrixnli/direct/prompt_1/afrixnli_{}.yaml",),
        fillers=("xnli",),
    ),
    Task(
        "afrimmlu",
        "choice",
        "afrimmlu",
        "afrimmlu",
        "test",
        ("subject", "question", "choices", "answer"),
        "masakhane/afrimmlu",
        ("afrimmlu/direct/prompt_1/afrimmlu_direct_{}.yaml",),
        fillers=("global_mmlu_full", "mmmlu", "belebele"),
    ),
    Task(
        "global_mmlu",
        "choice",
        "global_mmlu",
        "global_mmlu",
        "test",
        (*_MMLU, "subject_category"),
        "CohereForAI/Global-MMLU-Lite",
        ("global_mmlu/default/{}/global_mmlu_{}_*.yaml",),
        "subject_category",
        fillers=("global_mmlu_full", "mmmlu", "afrimmlu", "belebele"),
    ),
    Task(
        "global_mmlu_full",
        "choice",
        "global_mmlu_full",
        "global_mmlu_full",
        "test",
        (*_MMLU, "subject"),
        "CohereForAI/Global-MMLU",
        ("global_mmlu/full/{}/global_mmlu_full_{}_*.yaml",),
        "subject",
        fillers=("mmmlu", "afrimmlu", "belebele"),
    ),
    Task(
        "mmmlu",
        "choice",
        "mmmlu",
        "mmmlu",
        "test",
        ("Question", "A", "B", "C", "D", "Answer", "Subject"),
        "openai/MMMLU",
        ("openai-mmmlu/default/mmmlu_{}_*.yaml",),
        "Subject",
        ("acc", "acc_norm"),
        fillers=("global_mmlu_full", "afrimmlu", "belebele"),
    ),
    Task(
        "mgsm",
        "answer",
        "mgsm",
        "mgsm",
        "test",
        ("question", "answer", "answer_number"),
        "juletxara/mgsm",
        ("mgsm/direct/mgsm_direct_{}.yaml", "*_bench/mgsm_direct_{}.yaml"),
        metrics=("exact_match,flexible-extract", "exact_match,remove_whitespace"),
    ),
    Task(
        "mgsm_native_cot",
        "answer",
        "mgsm",
        "mgsm",
        "test",
        ("question", "answer", "answer_number"),
        "juletxara/mgsm",
        ("mgsm/native_cot/mgsm_native_cot_{}.yaml", "*_bench/mgsm_native_cot_{}.yaml"),
        metrics=("exact_match,flexible-extract", "exact_match,strict-match"),
        fillers=("mgsm",),
    ),
    Task(
        "flores",
        "translation",
        "flores",
        "flores200",
        "devtest",
        ("id", "sentence"),
        "openlanguagedata/flores_plus",
    ),
    Task(
        "xlsum",
        "summary",
        "xlsum",
        "xlsum",
        "test",
        ("text", "summary"),
        "csebuetnlp/xlsum",
    ),
    Task(
        "language_confusion",
        "confusion",
        "language_confusion",
        "language_confusion",
        "test",
        ("prompt", "language", "source"),
        "CohereLabs/language_confusion_benchmark",
    ),
    Task(
        "dolly",
        "prompts",
        "flores",
        "dolly",
        "test",
        ("inputs",),
        "CohereLabs/aya_evaluation_suite",
    ),
)
_TASKS = {task.name: task for task in _ALL}


def task_names() -> list[str]:
    """Return the names of all benchmark tasks."""
    return list(_TASKS)


def find_task(name: str) -> Task:
    """Return the task with a name.

    Raises:
        ValueError: there is none; the message suggests a similar name.
    """
    if name not in _TASKS:
        raise ValueError(unknown("task", name, [PERPLEXITY, *task_names()]))
    return _TASKS[name]


def check_tasks(names: Sequence[str]) -> None:
    """Check that tasks with these names exist.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        find_task(name)


def fillers(task: Task, language: Language) -> list[str]:
    """Return the similar tasks that have the language."""
    return [name for name in task.fillers if _TASKS[name].code(language)]


def task_languages(task: Task) -> Sequence[Language]:
    """Return the languages that a task has."""
    return [language for language in languages() if task.code(language)]
