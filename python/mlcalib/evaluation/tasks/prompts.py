"""The prompts of the tasks that mlcalib itself generates and scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlcalib.evaluation.tasks.catalogue import Task
from mlcalib.evaluation.tasks.data import (
    SUFFIXES,
    JsonRow,
    hub_rows,
    local_file,
    missing_file,
    read_rows,
)
from mlcalib.languages import Language, language

if TYPE_CHECKING:
    from mlcalib.evaluation.tasks.model import TaskModel

ENGLISH = "en"


@dataclass(frozen=True)
class Prompts:
    """The prompts of one task in one language.

    Attributes:
        task: name of the task in the results, e.g. ``flores_to_en``.
        kind: as ``Task.kind``.
        language: the language that the results are about.
        target: the language that the model should write.
        texts: the prompts, as the data set has them or as the task words them.
        references: what is right, one per prompt; empty where nothing is.
        until: texts that end a generation.
        max_tokens: tokens of a generation.
        chat: the prompts are what a user says to an assistant.
    """

    task: str
    kind: str
    language: Language
    target: Language
    texts: list[str]
    references: list[str]
    until: tuple[str, ...]
    max_tokens: int
    chat: bool = False


def prompts(
    task: Task, about: Language, data: Path | None, limit: int | None, lm: "TaskModel"
) -> list[Prompts]:
    """Return the prompts of a task in a language, or none if the task does not have it.

    Raises:
        FileNotFoundError: a file is missing in ``data``.
        ValueError: a file is not what the task reads.
    """
    if not _has(task, about):
        return []
    if task.kind == "translation":
        return _translation(task, about, data, limit)
    if task.kind == "summary":
        return [_summaries(task, about, data, limit, lm)]
    if task.kind == "confusion":
        return _confusion(task, about, data, limit)
    return _dolly(task, about, data, limit)


def prompt_files(task: Task, about: Language, data: Path) -> list[Path]:
    """Return the files with the prompts of a language, or none if the task does not have it.

    Raises:
        FileNotFoundError: a file is missing.
    """
    if not _has(task, about):
        return []
    if task.kind == "confusion":
        return [path for paths in _confusion_files(task, about, data).values() for path in paths]
    read = [about, language(ENGLISH)] if task.kind == "translation" else [about]
    return [_file(task, each, data) for each in read]


def _has(task: Task, about: Language) -> bool:
    return task.code(about) is not None and (task.kind, about.code) != ("translation", ENGLISH)


def worded(asked: Prompts, lm: "TaskModel") -> list[str]:
    """Return the texts that the model reads.

    The message of a user goes through the chat template of the tokenizer. A model without a chat
    template gets the question form in which the Language Confusion Benchmark asks base models.
    """
    if not asked.chat:
        return asked.texts
    if not lm.tokenizer.chat_template:
        return [f"Q: {text}\nA:" for text in asked.texts]
    return [
        str(
            lm.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        )
        for text in asked.texts
    ]


def _translation(
    task: Task, about: Language, data: Path | None, limit: int | None
) -> list[Prompts]:
    english = language(ENGLISH)
    own, en = (_sentences(task, each, data) for each in (about, english))
    shared = [key for key in own if key in en][:limit]
    if not shared:
        raise ValueError(f"{task.name}: '{about.code}' and 'en' have no sentence id in common.")
    return [
        Prompts(
            task=name,
            kind=task.kind,
            language=about,
            target=target,
            texts=[  # as lm-eval's FLORES tasks word it
                f"{origin.name} sentence: {given[key]}\n{target.name} sentence:" for key in shared
            ],
            references=[wanted[key] for key in shared],
            until=("\n",),
            max_tokens=256,
        )
        for name, origin, target, given, wanted in (
            (f"{task.name}_from_en", english, about, en, own),
            (f"{task.name}_to_en", about, english, own, en),
        )
    ]


def _sentences(task: Task, each: Language, data: Path | None) -> dict[int, str]:
    if data is None:
        return {row["id"]: row["text"] for row in hub_rows(task, each.flores)}
    return {row["id"]: row["sentence"] for row in _rows(task, each, data)}


def _summaries(
    task: Task, about: Language, data: Path | None, limit: int | None, lm: "TaskModel"
) -> Prompts:
    if data is None:  # the data set's own loader is a script, which `datasets` no longer runs
        rows = hub_rows(task, task.code(about), revision="refs/convert/parquet")
    else:
        rows = _rows(task, about, data)
    rows, new = rows[:limit], 128
    start, end = f"Article in {about.name}: ", f"\nSummary in {about.name}, in one sentence:"
    room = lm.max_length - new - len(lm.tok_encode(start)) - len(lm.tok_encode(end)) - 2
    if room < 1:
        raise ValueError(
            f"task '{task.name}' needs a context of more than {lm.max_length} tokens, which is all "
            "that the model has."
        )
    return Prompts(
        task=task.name,
        kind=task.kind,
        language=about,
        target=about,
        texts=[f"{start}{_cut(row['text'], room, lm)}{end}" for row in rows],
        references=[row["summary"] for row in rows],
        until=("\n",),
        max_tokens=new,
    )


def _cut(text: str, tokens: int, lm: "TaskModel") -> str:
    """Return as much of the beginning of a text as fits."""
    text = " ".join(text.split())
    ids = lm.tok_encode(text, add_special_tokens=False)
    return text if len(ids) <= tokens else str(lm.tok_decode(ids[:tokens])).rstrip("\ufffd")


def _confusion(task: Task, about: Language, data: Path | None, limit: int | None) -> list[Prompts]:
    code = str(task.code(about))
    texts: dict[str, dict[str, list[str]]] = {"monolingual": {}, "crosslingual": {}}
    if data is None:
        for row in hub_rows(task, None):
            if row["language"] == code:
                texts[row["task"]].setdefault(row["source"], []).append(row["prompt"])
    else:
        for setting, paths in _confusion_files(task, about, data).items():
            for path in paths:
                rows = read_rows(path, task.fields)
                texts[setting][path.parent.name] = [row["prompt"] for row in rows]
    return [
        _asked(
            task,
            f"{task.name}_{setting}",
            about,
            [text for source in sorted(sources) for text in sources[source][:limit]],
            100,  # as the benchmark
        )
        for setting, sources in texts.items()
        if sources
    ]


def _confusion_files(task: Task, about: Language, data: Path) -> dict[str, list[Path]]:
    """Return for each setting the files of its sources."""
    code = str(task.code(about))
    found = {
        setting: [
            path
            for path in sorted((data / task.folder / setting).glob(f"*/{code}.*"))
            if path.suffix in SUFFIXES
        ]
        for setting in ("monolingual", "crosslingual")
    }
    if not any(found.values()):
        where = data / task.folder / "monolingual" / "SOURCE" / f"{code}.jsonl"
        raise missing_file(where, task, about)
    return found


def _dolly(task: Task, about: Language, data: Path | None, limit: int | None) -> list[Prompts]:
    if data is not None:
        rows = _rows(task, about, data)
    else:  # what people edited, and else what a machine translated
        code, _, script = str(task.code(about)).partition("_")
        rows = next(
            (
                found
                for name in ("dolly_human_edited", "dolly_machine_translated")
                if (
                    found := [
                        row
                        for row in hub_rows(task, name)
                        if (row["language"], row["script"]) == (code, script)
                    ]
                )
            ),
            [],
        )
    texts = [row["inputs"] for row in rows][:limit]
    return [_asked(task, task.name, about, texts, 256)] if texts else []


def _rows(task: Task, about: Language, data: Path) -> list[JsonRow]:
    return read_rows(_file(task, about, data), task.fields)


def _file(task: Task, about: Language, data: Path) -> Path:
    path = local_file(data, task, about)
    if path is None:
        raise missing_file(data / task.folder / f"{task.code(about)}.jsonl", task, about)
    return path


def _asked(task: Task, name: str, about: Language, texts: list[str], tokens: int) -> Prompts:
    return Prompts(name, task.kind, about, about, texts, [], ("\nQ:",), tokens, chat=True)
