"""``mlcalib.evaluate``: measures models and returns rows of results."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib.calibration_sets import (
    Stream,
    describe_windows,
    tokenizer_fingerprint,
)
from mlcalib.common.progress import progress_bar
from mlcalib.common.ranks import Ranks
from mlcalib.corpora import check_corpus
from mlcalib.evaluation.fidelity import fidelity_rows
from mlcalib.evaluation.outliers import outlier_rows, outliers_of
from mlcalib.evaluation.perplexity import DEFAULT_TOKENS, items_of, rows_of
from mlcalib.evaluation.scorer import Scorer
from mlcalib.evaluation.sharing import measure_together, shared_cache
from mlcalib.evaluation.subject import (
    Model,
    Subject,
    evaluation_dtype,
    evaluation_seq_len,
    name_apart,
    source_of,
)
from mlcalib.evaluation.tasks import PERPLEXITY, TaskResults, check_data, check_tasks, listed
from mlcalib.evaluation.tasks.kept import run_subject
from mlcalib.evaluation.text import eval_text
from mlcalib.languages import LanguageSet, language_set
from mlcalib.models.context import DEFAULT_SEQ_LEN
from mlcalib.models.device import choose_device, own_device
from mlcalib.models.identity import file_sizes
from mlcalib.results.rows import Results, joined, versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mlcalib.common.progress import Bar


_log = logging.getLogger(__name__)


class Evaluation(Results):
    """The results of an evaluation: rows, and in ``items`` the items that they come from.

    Attributes:
        tasks: for each model in turn, what its benchmark tasks gave: scores item by item, generated
            texts, and cells without a number. Empty if no benchmark task was asked for.
    """

    def __init__(self, text: Results, tasks: Iterable[TaskResults]) -> None:
        self.tasks = list(tasks)
        every = joined([text, *(each.results for each in self.tasks)])
        super().__init__(every, every.items)


def evaluate(  # noqa: PLR0913 - options of one thing
    model: "Model | Sequence[Model] | Mapping[str, Model]",
    languages: str | LanguageSet | None = None,
    corpus: str | Mapping[str, Sequence[str]] = "sample",
    *,
    tasks: str | Sequence[str] = PERPLEXITY,
    tokens: int | None = None,
    seq_len: int | None = None,
    separator: str | None = None,
    window_bos: bool = True,
    dtype: str = "auto",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    fidelity: bool = False,
    data: str | Path | None = None,
    limit: int | None = None,
    sentencepiece: str | Path | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Measure perplexity, fidelity to a float model, and benchmark tasks per language.

    Args:
        model: a folder, a hub name, a GGUF file, one of these as ``mlcalib.LLMInt8(...)``, what
            ``mlcalib.quantize`` returned, or a transformers model. If several are given, all are
            compared with the first. A mapping of names to models says what results call each of
            them; otherwise the names of models in memory that are alike tell in which options they
            differ.
        languages: as for ``mlcalib.calibration``; shares do not matter here. The default is
            ``multi10`` with a corpus by name, and otherwise all languages of ``corpus``.
        corpus: as for ``mlcalib.calibration``. Its evaluation text is used, which must be plain
            text. Or a mapping of languages to documents (strings).
        tasks: ``perplexity`` and benchmark tasks (``mlcalib.evaluation.tasks.task_names``), in a
            list or separated by commas.
        tokens: the number of tokens of each language that are scored for perplexity, from the
            beginning of its text. By default 8,192, or all if a text has fewer, which a warning
            says.
        seq_len: the context for perplexity, in tokens. Windows do not overlap. By default 512; see
            ``evaluation_seq_len``.
        separator: what is put between documents, as for ``mlcalib.calibration``.
        window_bos: whether every window begins as the tokenizer begins a text, as for
            ``mlcalib.calibration``. ``Row.windows`` records it.
        dtype: the dtype of models that are loaded here; see ``evaluation_dtype``.
        tokenizer: the tokenizer of the transformers models.
        fidelity: whether to also compare the next-token distributions of each model with those of
            the first, in the forward that perplexity needs; see ``fidelity_rows``.
        data: the folder with the data of benchmark tasks; None reads them from the hub. See
            ``run_tasks``.
        limit: the number of items of each benchmark task and language.
        sentencepiece: the file of the SentencePiece model that spBLEU needs.
        cache: a folder in which results are kept as soon as they are known. They are found again by
            the content of model and text, the options and the versions, so a call that was
            interrupted continues when it is repeated. None keeps nothing.
        device: where models that are loaded here run: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a
            GPU, where there is one and mlcalib was built for it). On a GPU as many windows run at
            once as fit into its memory; see docs/how-to/benchmarks.md.
        progress: whether to show progress bars.
        ranks: the processes that do this together, from ``joined_ranks``; each calls this with the
            same arguments, and all get the same results. They share ``cache``, which on several
            machines must be a folder that all of them see.

    Returns:
        Rows for the metrics ``perplexity``, ``bits_per_byte`` and ``token_loss`` (nats), whose
        standard errors are over documents; with ``fidelity`` rows of the task ``fidelity``; of
        models that run with LLM.int8() rows of the task ``llm_int8`` (see ``outlier_rows``); and
        rows of the benchmark tasks. The attribute ``items`` has the documents and items behind the
        rows, and ``tasks`` has the other results of benchmark tasks.

    Raises:
        FileNotFoundError: a model or text does not exist, or a task has no data in any of the
            languages.
        ImportError: a package that a task needs is not installed.
        TypeError: ``corpus`` is neither a name nor a mapping.
        ValueError: a task is unknown; two models have one name; a language has too little text;
            ``seq_len`` is above the context length of a model; or fidelity is asked for a single
            model, without perplexity, or for models with different tokens.
    """
    check_corpus(corpus)
    names, models = _named(model)
    wanted = listed(tasks)
    benchmarks = [name for name in wanted if name != PERPLEXITY]
    check_tasks(benchmarks)
    for option, value in (("tokens", tokens), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{option} is {value}; give 1 or more, or leave it out.")
    _check_fidelity(fidelity, models, wanted)
    if not isinstance(languages, LanguageSet):
        spelled = "multi10" if isinstance(corpus, str) else ",".join(corpus)
        languages = language_set(languages or spelled)
    codes = list(languages.weights)
    options: dict[str, Any] = {"data": data, "limit": limit, "sentencepiece": sentencepiece}
    check_data(benchmarks, codes, data)
    ranks = Ranks() if ranks is None else ranks
    place = choose_device(own_device(device, ranks))
    computed = evaluation_dtype(models, dtype, place)
    subjects = [
        Subject(each, computed, tokenizer, name, place)
        for name, each in zip(names, models, strict=True)
    ]
    name_apart(subjects)
    perplexity = PERPLEXITY in wanted
    context = evaluation_seq_len(models, seq_len) if perplexity else DEFAULT_SEQ_LEN
    if perplexity and seq_len is None and context < DEFAULT_SEQ_LEN:
        _log.warning("windows have %d tokens, the context of the models", context)
    _check_same(subjects, ranks, dtype=computed, device=place.type, tasks=wanted)
    texts: dict[str, dict[str, Stream]] = {}  # a tokenizer's fingerprint → language → text

    def texts_of(subject: Subject) -> Mapping[str, Stream]:
        if not perplexity:
            return {}
        key = tokenizer_fingerprint(subject.tokenizer)
        if key not in texts:
            texts[key] = _texts(subject.tokenizer, languages, corpus, separator, tokens, window_bos)
        return texts[key]

    with shared_cache(cache, ranks) as kept:
        scoring = partial(
            Scorer,
            tokens=DEFAULT_TOKENS if tokens is None else tokens,
            seq_len=context,
            fidelity=fidelity,
            allow_short=tokens is None,
            cache=kept,
        )
        if not ranks.alone and kept is not None:
            measure_together(
                subjects, texts_of, scoring(), kept, benchmarks, codes, ranks, **options
            )
        results, found = Results(), list[TaskResults]()
        scorer, count = scoring(), len(models) * len(codes)
        told = progress and ranks.writes
        with progress_bar(total=count, desc="evaluating", disable=not (told and perplexity)) as bar:
            for subject in subjects:
                if own := texts_of(subject):
                    bar.set_postfix_str(subject.method)
                    windows = describe_windows(subject.tokenizer, window_bos)
                    scored = _scored(subject, scorer, own, fidelity, windows, bar)
                    results = joined([results, scored])
                if benchmarks:
                    found.append(
                        run_subject(subject, kept, benchmarks, codes, progress=told, **options)
                    )
                scorer.release(subject)
        ranks.wait()  # nobody needs the cache any more
    return Evaluation(results, found)


def _check_same(subjects: Sequence[Subject], ranks: Ranks, **options: Any) -> None:
    """Make sure that all ranks evaluate the same; collective.

    Raises:
        ValueError: they do not, or a model is in memory, of which each has its own.
    """
    if ranks.alone:
        return
    for each in subjects:
        if not isinstance(source_of(each.given), str | Path):
            raise ValueError(
                f"{each.name} is a model in memory; over ranks give the folder of each model."
            )
    files = {each.name: file_sizes(str(source_of(each.given))) for each in subjects}
    ranks.check_same({"the versions": versions(), **options, **files})


def _named(
    model: "Model | Sequence[Model] | Mapping[str, Model]",
) -> "tuple[list[str | None], list[Model]]":
    """Return the names that models were given, or None, and the models."""
    if isinstance(model, Mapping):
        return list(model), list(model.values())
    models = list(model) if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    return [None] * len(models), models


def _check_fidelity(fidelity: bool, models: "Sequence[Model]", tasks: Sequence[str]) -> None:
    if fidelity and len(models) < 2:
        raise ValueError("Fidelity is to the first of several models; give two or more.")
    if fidelity and PERPLEXITY not in tasks:
        raise ValueError(
            "Fidelity is measured on the text of perplexity, but the tasks are "
            f"{', '.join(tasks)}; add {PERPLEXITY}."
        )


def _texts(
    tokenizer: "PreTrainedTokenizerBase",
    languages: LanguageSet,
    corpus: str | Mapping[str, Sequence[str]],
    separator: str | None,
    tokens: int | None,
    window_bos: bool,
) -> dict[str, Stream]:
    """Return the text to score; say where it has fewer tokens than the default."""
    wanted = DEFAULT_TOKENS if tokens is None else tokens
    texts = eval_text(tokenizer, languages, corpus, separator, wanted, window_bos=window_bos)
    short = {code: len(text.ids) - 1 for code, text in texts.items() if len(text.ids) <= wanted}
    if tokens is None and short:
        _log.warning(
            "the text of %s has fewer tokens than the default, %s; all are scored: %s",
            corpus if isinstance(corpus, str) else "the corpus that was given",
            f"{wanted:,}",
            ", ".join(f"{code} {count:,}" for code, count in short.items()),
        )
    return texts


def _scored(
    subject: Subject,
    scorer: Scorer,
    texts: Mapping[str, Stream],
    fidelity: bool,
    windows: str,
    bar: "Bar",
) -> Results:
    """Return the results of a model on running text."""
    origin = (subject.name, subject.method, subject.calibration)
    results = Results()
    compared = fidelity and bool(scorer.first)  # the first model is not, with itself
    for code, found in scorer.scores(subject, texts):
        results += rows_of({code: found}, *origin, windows)
        results.items += items_of({code: found}, *origin)
        if compared:
            results += fidelity_rows({code: found}, scorer.first, *origin, windows)
        bar.update()
    if subject.threshold is not None:
        length = {"seq_len": scorer.seq_len, "tokens": scorer.tokens}
        results += outlier_rows(outliers_of(subject.model, texts, **length), *origin, windows)
    return results
