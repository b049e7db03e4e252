"""Runs benchmark tasks on a model."""

import itertools
import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.common.optional import optional
from mlcalib.evaluation.tasks.catalogue import Task, fillers, find_task
from mlcalib.evaluation.tasks.outcome import Missing, TaskResults
from mlcalib.evaluation.tasks.prompts import Prompts, prompt_files, prompts, worded
from mlcalib.evaluation.tasks.scoring import score
from mlcalib.evaluation.tasks.stock import (
    Sample,
    StockTask,
    quiet_harness,
    run_stock,
    stock_data,
    stock_task,
)
from mlcalib.evaluation.tasks.text_metrics import Score, mean, sentencepiece_encoder
from mlcalib.languages import Language, language, language_set
from mlcalib.models.device import choose_device
from mlcalib.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mlcalib.evaluation.tasks.model import TaskModel

T = TypeVar("T")

_log = logging.getLogger(__name__)

NO_FILE = "no data file"
"""The reason for a missing cell if the task has the language, but the data folder does not."""


def run_tasks(  # noqa: PLR0913 - options of an evaluation, all by name
    model: "PreTrainedModel | str | Path",
    tokenizer: "PreTrainedTokenizerBase | None",
    tasks: str | Sequence[str],
    languages: str | Sequence[str] = "multi10",
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    sentencepiece: str | Path | None = None,
    name: str | None = None,
    method: str = "float",
    calibration: str = "none",
    batch_size: int | None = None,
    max_length: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> TaskResults:
    """Run benchmark tasks on a model, greedily and without examples (zero-shot).

    Args:
        model: a transformers model, or a folder, hub name or GGUF file.
        tokenizer: its tokenizer; None for the tokenizer of a model that is loaded here.
        tasks: names of tasks (``mlcalib.evaluation.tasks.task_names``), in a list or separated by
            commas.
        languages: a set (``multi10``) or codes, in a list or separated by commas.
        data: a folder with local data, ``TASK/LANGUAGE/SPLIT.jsonl``, .json or .parquet (see
            docs/how-to/benchmarks.md). The network is then not used. None reads from the hub.
        limit: use only the first ``limit`` items of each task and language; if a task has subjects
            or sources, of each of these.
        seed: the seed of the bootstrap that gives the errors of BLEU and chrF++. Nothing else is
            random.
        sentencepiece: the file of the SentencePiece model that spBLEU needs, e.g. FLORES-200's.
        name: the name of the model in the rows; by default its path or hub name.
        method: the name of its quantizer in the rows.
        calibration: the name of its calibration set in the rows.
        batch_size: how many sequences are generated together; by default 16.
        max_length: the context in tokens; by default that of the model.
        device: where a model that is loaded here runs, as for ``mlcalib.evaluate``.
        progress: whether to show progress bars.

    Returns:
        The rows, scores item by item, generated texts, and cells without a number.

    Raises:
        FileNotFoundError: ``data`` has no file of a task in any of the languages; the message says
            where to get one. (If it has some, the other cells are missing, and a warning names
            them.)
        ImportError: the extra ``eval`` is not installed.
        ValueError: a task or language is unknown, the limit is below 1, a file is not what the
            task reads, or a text has a token for which the model has no embedding.
    """
    wanted = [find_task(each) for each in listed(tasks)]
    spoken = [language(code) for code in codes(languages)]
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give 1 or more, or none for all items.")
    folder = _folder(data)
    encoder = None if sentencepiece is None else sentencepiece_encoder(sentencepiece)
    results = TaskResults(name or _name(model), method, calibration, seed)

    def find_stock(task: Task, each: Language) -> list[StockTask]:
        if (found := stock_task(task, each)) is None:
            return []
        if folder is not None:
            stock_data(found, folder)
        return [found]

    stock = _find([task for task in wanted if task.files], spoken, find_stock, results)
    lm = _task_model(model, tokenizer, batch_size, max_length, choose_device(device), progress)
    asked = _find(
        [task for task in wanted if not task.files],
        spoken,
        lambda task, each: prompts(task, each, folder, limit, lm),
        results,
    )
    texts = [worded(each, lm) for each in asked]
    lm.check_texts(itertools.chain(*texts))  # before what others are scored on runs
    if stock:
        for found, samples in zip(stock, run_stock(lm, stock, folder, limit), strict=True):
            _add_stock(found, samples, results)
    for each, outputs in zip(asked, _generate(lm, asked, texts), strict=True):
        scored = score(each, outputs, encoder, seed)
        code = each.language.code
        results.add(each.task, code, scored.scores, scored.items)
        results.add_generations(each.task, code, zip_longest(each.texts, outputs, each.references))
        results.missing += [
            Missing(each.task, code, metric, reason) for metric, reason in scored.missing.items()
        ]
    return results


def check_data(tasks: Sequence[str], languages: Sequence[str], data: str | Path | None) -> None:
    """Check, before any model is loaded, that tasks have the data that they need.

    Args:
        tasks: names of tasks.
        languages: codes of languages.
        data: as for ``run_tasks``.

    Raises:
        FileNotFoundError: the folder does not exist, or has no file of a task in any of the
            languages.
        ImportError: the extra ``eval`` is not installed.
    """
    if not tasks:
        return
    optional("lm_eval", "eval", "A benchmark task")
    folder = _folder(data)
    if folder is None:
        return
    for task in map(find_task, tasks):
        causes = []
        for code in languages:
            try:
                if _has_data(task, language(code), folder):
                    break
            except FileNotFoundError as error:
                causes.append(error)
        else:
            if causes:
                raise causes[0]


def lacking_data(task: str, code: str, data: str | Path | None) -> str | None:
    """Return what file of a task's language is not in a folder of data; None if nothing is."""
    try:
        if data is not None:
            _has_data(find_task(task), language(code), Path(data))
    except FileNotFoundError as error:
        return str(error)
    return None


def _has_data(task: Task, each: Language, folder: Path) -> bool:
    """Return whether a task has a language.

    Raises:
        FileNotFoundError: it has, but its file is not there.
    """
    if not task.files:
        return bool(prompt_files(task, each, folder))
    if (found := stock_task(task, each)) is None:
        return False
    stock_data(found, folder)
    return True


def listed(given: str | Sequence[str]) -> list[str]:
    """Return names given in a list or with commas, each once."""
    names = given.split(",") if isinstance(given, str) else list(given)
    return list(dict.fromkeys(name.strip() for name in names))


def codes(given: str | Sequence[str]) -> list[str]:
    """Return the codes of languages given as a set, in a list or with commas."""
    return list(language_set(given if isinstance(given, str) else ",".join(given)).weights)


def _folder(data: str | Path | None) -> Path | None:
    if data is None:
        return None
    if not (folder := Path(data).expanduser()).is_dir():
        raise FileNotFoundError(f"The data folder {data} does not exist.")
    return folder


def _name(model: "PreTrainedModel | str | Path") -> str:
    if isinstance(model, str | Path):
        return str(model)
    return str(model.config.name_or_path) or "model"


def _task_model(
    model: "PreTrainedModel | str | Path",
    tokenizer: "PreTrainedTokenizerBase | None",
    batch_size: int | None,
    max_length: int | None,
    device: torch.device,
    progress: bool,
) -> "TaskModel":
    optional("lm_eval", "eval", "A benchmark task")
    from mlcalib.evaluation.tasks.model import TaskModel

    if isinstance(model, str | Path):
        source = str(model)
        model = load_to_run(source, device=device)
        tokenizer = tokenizer or load_tokenizer(source)
    if tokenizer is None:
        raise ValueError("A live model was given without its tokenizer; give both.")
    with quiet_harness():
        return TaskModel(
            model, tokenizer, batch_size=batch_size, max_length=max_length, progress=progress
        )


def _find(
    tasks: Sequence[Task],
    languages: Sequence[Language],
    find: Callable[[Task, Language], Sequence[T]],
    results: TaskResults,
) -> list[T]:
    """Look every task up in every language; what is not there is missing in the results.

    Raises:
        FileNotFoundError: of a task no language has its file.
    """
    found: list[T] = []
    for task in tasks:
        of_task, lacking = 0, []
        for each in languages:
            try:
                here = find(task, each)
            except FileNotFoundError as error:
                lacking.append((each, error))
                continue
            if not here:
                results.missing.append(_no_task(task, each))
            of_task += len(here)
            found += here
        if lacking and not of_task:
            raise lacking[0][1]
        for each, cause in lacking:
            _log.warning("%s", cause)
            results.missing.append(Missing(task.name, each.code, None, NO_FILE))
    return found


def _no_task(task: Task, each: Language) -> Missing:
    return Missing(task.name, each.code, None, "no task", tuple(fillers(task, each)))


def _add_stock(found: StockTask, samples: Sequence[Sample], results: TaskResults) -> None:
    """Add what lm-eval found of each item; the first metric of the task says right or wrong."""
    task, code = found.task, found.language.code
    scores: list[Score] = []
    items: list[float | None] = []
    for metric in task.metrics:
        name, _, filtered = metric.partition(",")
        values = [
            float(sample[name])
            for sample in samples
            if name in sample and sample["filter"] == (filtered or "none")
        ]
        if values:
            items = items or list(values)
            scores.append(mean(metric, values))
    results.add(task.name, code, scores, items)
    if task.kind == "answer":
        texts = (
            (sample["arguments"][0][0], sample["resps"][0][0], str(sample["target"]))
            for sample in samples
            if sample["filter"] == samples[0]["filter"]
        )
        results.add_generations(task.name, code, texts)


def _generate(
    lm: "TaskModel", asked: Sequence[Prompts], texts: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Let the model write, everything in one go, so that like lengths are batched together."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(
                text,
                {
                    "until": list(each.until),
                    "max_gen_toks": each.max_tokens,
                    "do_sample": False,
                },
            ),
            idx=0,
        )
        for each, of_each in zip(asked, texts, strict=True)
        for text in of_each
    ]
    if not requests:
        return []
    with quiet_harness():
        written = iter(lm.generate_until(requests))
    return [[next(written).strip() for _ in each.texts] for each in asked]
