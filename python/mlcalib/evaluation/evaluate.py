"""``mlcalib.evaluate``: models in, rows of results out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from mlcalib.calibration_sets import Stream, tokenizer_fingerprint
from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.fidelity import fidelity_rows
from mlcalib.evaluation.perplexity import items_of, rows_of
from mlcalib.evaluation.scorer import Scorer
from mlcalib.evaluation.subject import Model, Subject, evaluation_dtype
from mlcalib.evaluation.tasks import PERPLEXITY, TaskResults, check_data, check_tasks, listed
from mlcalib.evaluation.tasks.kept import run_subject
from mlcalib.evaluation.text import eval_text
from mlcalib.languages import LanguageSet, language_set
from mlcalib.results.rows import Results, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Evaluation(Results):
    """The results of an evaluation: rows, and in ``items`` what they are made of.

    Attributes:
        tasks: of each model in turn, what benchmark tasks gave beside rows: scores item by item,
            generations, and cells without a number; empty where none was asked for.
    """

    def __init__(self, text: Results, tasks: Iterable[TaskResults]) -> None:
        self.tasks = list(tasks)
        every = joined([text, *(each.results for each in self.tasks)])
        super().__init__(every, every.items)


def evaluate(  # noqa: PLR0913 - options of one thing
    model: "Model | Sequence[Model]",
    languages: str | LanguageSet = "multi10",
    corpus: str = "sample",
    *,
    tasks: str | Sequence[str] = PERPLEXITY,
    tokens: int = 8192,
    seq_len: int = 512,
    separator: str | None = None,
    dtype: str = "auto",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    fidelity: bool = False,
    data: str | Path | None = None,
    limit: int | None = None,
    sentencepiece: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure perplexity, fidelity to a float model, and benchmark tasks per language.

    Args:
        model: a folder, a hub name, a GGUF file, what ``mlcalib.quantize`` returned, or a
            transformers model; or several, which are compared with the first.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its eval split is used, which must be plain text.
        tasks: ``perplexity`` and benchmark tasks (``mlcalib.evaluation.tasks.task_names``), in a
            list or with commas.
        tokens: tokens scored per language for perplexity: the first so many.
        seq_len: context of perplexity; windows do not overlap.
        separator: what stands between documents, as for ``mlcalib.calibration``.
        dtype: of models that are loaded here; see ``evaluation_dtype``.
        tokenizer: of the transformers models.
        fidelity: also compare the next-token distributions of each model with those of the first,
            in the same forward as perplexity; see ``fidelity_rows``.
        data: folder with the benchmark tasks' data; None for the hub's. See ``run_tasks``.
        limit: items per benchmark task and language.
        sentencepiece: the SentencePiece model that spBLEU needs.
        cache: a folder in which results are kept as soon as they are there, and found again by
            content of model and text, options and versions, so that the same call goes on where an
            earlier one was interrupted; None to keep nothing.
        progress: show bars.

    Returns:
        Rows: the metrics ``perplexity``, ``bits_per_byte`` and ``token_loss`` (nats), whose
        standard errors are over documents, with ``fidelity`` those of the task ``fidelity``; then
        those of the benchmark tasks. In ``items`` the documents and items behind them; and of each
        model, what the tasks gave beside.

    Raises:
        FileNotFoundError: no such model or text, or no data of a task in any of the languages.
        ImportError: a package that a task needs is not installed.
        ValueError: an unknown task; too little text in a language, which is named; fidelity of a
            single model, without perplexity, or of one that has other tokens than the first.
    """
    models = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    wanted = listed(tasks)
    benchmarks = [name for name in wanted if name != PERPLEXITY]
    check_tasks(benchmarks)
    _check_fidelity(fidelity, models, wanted)
    if not isinstance(languages, LanguageSet):
        languages = language_set(languages)
    codes = list(languages.weights)
    options: dict[str, Any] = {"data": data, "limit": limit, "sentencepiece": sentencepiece}
    check_data(benchmarks, codes, data)
    computed = evaluation_dtype(models, dtype)
    subjects = [Subject(each, computed, tokenizer) for each in models]
    kept = None if cache is None else Cache(cache)
    scorer = Scorer(tokens=tokens, seq_len=seq_len, fidelity=fidelity, cache=kept)
    texts: dict[str, dict[str, Stream]] = {}  # a tokenizer's fingerprint → language → text
    results = Results()
    found: list[TaskResults] = []
    perplexity = PERPLEXITY in wanted
    count = len(models) * len(codes)
    with tqdm(total=count, desc="evaluating", disable=not (progress and perplexity)) as bar:
        for subject in subjects:
            if perplexity:
                key = tokenizer_fingerprint(subject.tokenizer)
                if key not in texts:
                    texts[key] = eval_text(subject.tokenizer, languages, corpus, separator, tokens)
                bar.set_postfix_str(subject.method)
                scored = _scored(subject, scorer, texts[key], fidelity, bar)
                results = joined([results, scored])
            if benchmarks:
                found.append(
                    run_subject(subject, kept, benchmarks, codes, progress=progress, **options)
                )
            scorer.release(subject)
    return Evaluation(results, found)


def _check_fidelity(fidelity: bool, models: "Sequence[Model]", tasks: Sequence[str]) -> None:
    if fidelity and len(models) < 2:
        raise ValueError("Fidelity is to the first of several models; give two or more.")
    if fidelity and PERPLEXITY not in tasks:
        raise ValueError(
            "Fidelity is measured on the text of perplexity, but the tasks are "
            f"{', '.join(tasks)}; add {PERPLEXITY}."
        )


def _scored(
    subject: Subject, scorer: Scorer, texts: dict[str, Stream], fidelity: bool, bar: "tqdm[Any]"
) -> Results:
    """Return the results of a model on running text."""
    origin = (subject.name, subject.method, subject.calibration)
    results = Results()
    compared = fidelity and bool(scorer.first)  # the first model is not, with itself
    for code, found in scorer.scores(subject, texts):
        results += rows_of({code: found}, *origin)
        results.items += items_of({code: found}, *origin)
        if compared:
            results += fidelity_rows({code: found}, scorer.first, *origin)
        bar.update()
    return results
