"""``mlcalib.calibration``: makes a calibration set from text or token ids."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib.calibration_sets import CalibrationSet, build, from_ids, weighted
from mlcalib.calibration_sets.images import Processor
from mlcalib.common.hub import hub_name, located
from mlcalib.corpora import Document, Documents, check_corpus, open_corpus
from mlcalib.languages import LanguageSet, language_set
from mlcalib.languages.language_sets import check_spelling
from mlcalib.models.context import DEFAULT_SEQ_LEN, context_length, read_config
from mlcalib.models.loading import check_source, load_processor, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

_log = logging.getLogger(__name__)


def calibration(  # noqa: PLR0913 - what a calibration set is made of
    tokenizer: "str | Path | PreTrainedTokenizerBase | ProcessorMixin | None",
    languages: str | LanguageSet | None = None,
    corpus: str
    | Mapping[str, Sequence[Document]]
    | Mapping[str, Sequence[Sequence[int]]] = "sample",
    *,
    tokens: int | None = None,
    tokens_per_language: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    separator: str | None = None,
    chat_template: bool | str | Path = False,
    allow_short: bool = False,
    window_bos: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> CalibrationSet:
    r"""Make a calibration set: the token ids, per language, that a model is calibrated on.

    Args:
        tokenizer: a fast tokenizer, or the model that it belongs to (a folder, a hub name, or a
            GGUF file). It may be None if ``corpus`` holds token ids. Of a model that sees, the
            model or its processor: then conversations may have images (see ``chat_template``).
        languages: the name of a set (``multi10``), a list (``en,sw``), shares (``en:0.7,sw:0.3``)
            or a ``LanguageSet``. The default is ``multi10`` if the corpus is given by name, and
            otherwise the languages of ``corpus`` in equal shares.
        corpus: the name of a corpus: ``sample``, ``files:PATH``, ``c4``, ``wikipedia``,
            ``hub:NAME`` or ``translated:MODEL?source=en&corpus=SPEC`` (see
            ``mlcalib.corpora.open_corpus``). Or a mapping from languages to documents (strings or
            lists of messages), or to sequences of token ids, which are all used.
        tokens: the number of tokens of the whole set, which is split by the shares. This or
            ``tokens_per_language`` is needed unless token ids are given.
        tokens_per_language: the number of tokens of every language. The shares then weigh the
            statistics of the languages.
        seq_len: the number of tokens of a sequence. A forward always has the shape [1, seq_len]. By
            default 512, or the context of the model that ``tokenizer`` names if it is shorter,
            which a warning says.
        seed: the seed with which documents are shuffled.
        separator: what is put between documents: ``eos``, ``bos``, a text such as ``\n\n``, or
            None for what the tokenizer adds by itself.
        chat_template: how conversations become text: True for the tokenizer's chat template, the
            path of a Jinja file (a ``Path``), or the template itself (a ``str``). Nothing is added
            to what the template writes, so there is no second BOS. A conversation with images in
            local files (``{"type": "image", "path": FILE}`` among the parts of a content) becomes
            a sequence of its own, as the model's processor makes it.
        allow_short: if a language has too little text, use what there is instead of raising an
            error.
        window_bos: whether every sequence begins as the tokenizer begins a text: with BOS, if it
            adds one. Otherwise a sequence begins where the one before it ends.
        revision: of a model on the hub: a branch, a tag or a commit; ``NAME@REVISION`` is the same.
        token: of the hub, for a model that not everybody may read; None for the one that ``hf auth
            login`` or ``HF_TOKEN`` set.

    Returns:
        The calibration set, with a report of what was asked for and found in each language.

    Raises:
        FileNotFoundError: a folder does not exist, or there is no text in a language.
        ImportError: a package that the corpus needs is not installed.
        TypeError: ``languages`` are documents, or no text for another reason; ``corpus`` is
            neither a name nor a mapping.
        ValueError: see ``mlcalib.calibration_sets.build``.
    """
    tokenizer = located(tokenizer, revision, token)
    if languages is not None and not isinstance(languages, LanguageSet):
        check_spelling(languages)
    check_corpus(corpus)
    nothing: Mapping[str, Any] = {}
    name, given = (corpus, nothing) if isinstance(corpus, str) else ("given", corpus)
    if ids := _token_ids(given):
        unused = {"languages": languages, "tokens": tokens}
        unused["tokens_per_language"] = tokens_per_language
        for option, value in unused.items():
            if value is not None:
                raise ValueError(
                    f"{option}= was given with token ids, which are all used, as the languages of "
                    f"the mapping; leave {option}= out, or give text."
                )
        return from_ids(ids, seq_len=DEFAULT_SEQ_LEN if seq_len is None else seq_len)
    if tokens is not None and tokens_per_language is not None:
        raise ValueError(
            "tokens= and tokens_per_language= were given; give one: tokens= are split by the "
            "shares of the languages, tokens_per_language= are the same for all."
        )
    if tokenizer is None or (tokens is None and tokens_per_language is None):
        missing = (
            "a tokenizer; pass it"
            if tokenizer is None
            else "one of tokens= and tokens_per_language=; pass it, e.g. tokens=40960, which the "
            "languages share"
        )
        raise ValueError(f"Text was given without {missing}.")
    if isinstance(languages, LanguageSet):
        spelled = ",".join(f"{code}:{share!r}" for code, share in languages.weights.items())
    else:
        spelled = languages if languages is not None else ",".join(given) or "multi10"
        languages = language_set(spelled)
    if isinstance(corpus, str):
        source = open_corpus(corpus)
        given = {code: source.documents(code, "calib", seed) for code in languages.weights}
    loaded, processor = _opened(tokenizer)
    made = from_documents(
        loaded,
        given,  # type: ignore[arg-type]  # ids were dealt with above
        languages,
        spelled if isinstance(corpus, str) else None,
        name,
        tokens,
        tokens_per_language,
        {
            "seq_len": _default_seq_len(tokenizer) if seq_len is None else seq_len,
            "seed": seed,
            "separator": separator,
            "chat_template": chat_template,
            "allow_short": allow_short,
            "window_bos": window_bos,
        },
        processor,
    )
    for warning in made.warnings:
        _log.warning("calibration text: %s", warning)
    return made


def _opened(
    given: "str | Path | PreTrainedTokenizerBase | ProcessorMixin",
) -> "tuple[PreTrainedTokenizerBase, Processor | None]":
    """Return the tokenizer, and what gives the processor; None where there is surely none."""
    if isinstance(given, str | Path):
        check_source(str(given))
        return load_tokenizer(str(given)), cache(partial(load_processor, str(given)))
    inner = getattr(given, "tokenizer", None)
    return (given, None) if inner is None else (inner, lambda: given)


def _default_seq_len(tokenizer: object) -> int:
    """Return 512, or the context of the model that is named if it is shorter."""
    if not isinstance(tokenizer, str | Path):
        return DEFAULT_SEQ_LEN
    length = context_length(read_config(str(tokenizer)))
    if length is None or length >= DEFAULT_SEQ_LEN:
        return DEFAULT_SEQ_LEN
    _log.warning("sequences have %d tokens, the context of %s", length, tokenizer)
    return length


def from_documents(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Mapping[str, Sequence[Document] | Documents],
    languages: LanguageSet,
    spelled: str | None,
    corpus: str,
    tokens: int | None,
    tokens_per_language: int | None,
    options: Mapping[str, Any],
    processor: Processor | None = None,
) -> CalibrationSet:
    """Make a calibration set of documents, and record the call of ``calibration`` that makes it.

    Args:
        tokenizer: a fast tokenizer.
        texts: language → documents, as for ``mlcalib.calibration_sets.build``.
        languages: the languages and their shares.
        spelled: ``languages`` as ``calibration`` takes them; None where no call of ``calibration``
            makes this set again, so that none is recorded.
        corpus: where the text comes from.
        tokens: see ``calibration``; one of the two is given.
        tokens_per_language: see ``calibration``.
        options: the other options of ``calibration``, all of them.
        processor: see ``mlcalib.calibration_sets.build``.

    Raises:
        TypeError, ValueError: see ``mlcalib.calibration_sets.build``.
    """
    make, unit, count = (
        (build, "tokens", tokens)
        if tokens_per_language is None
        else (weighted, "tokens_per_language", tokens_per_language)
    )
    built = make(
        tokenizer,
        texts,
        languages,
        tokens=count,  # type: ignore[arg-type]  # one of the two was given
        corpus=corpus,
        processor=processor,
        **options,
    )
    template = options["chat_template"]
    if spelled is None or not (tokenizer.name_or_path and isinstance(template, bool)):
        return built
    where = {"tokenizer": hub_name(tokenizer.name_or_path), "languages": spelled, "corpus": corpus}
    said = {key: value for key, value in options.items() if (key, value) != ("window_bos", True)}
    return replace(built, arguments={**where, unit: count, **said})


def _token_ids(given: Mapping[str, Any]) -> Mapping[str, Sequence[Sequence[int]]] | None:
    """Return ``given`` if it holds token ids rather than text or conversations."""
    for code, documents in given.items():
        for index, document in enumerate(documents):
            if not isinstance(document, str) and len(document) == 0:
                raise ValueError(
                    f"The text in '{code}' has an empty list (index {index}), which is neither a "
                    "conversation, a list of messages, nor token ids; leave it out."
                )
    kinds = {
        isinstance(document, str) or isinstance(next(iter(document), None), Mapping)
        for documents in given.values()
        for document in ([documents] if isinstance(documents, str) else documents)
    }
    if kinds == {True, False}:
        raise ValueError("Some languages have text and others token ids; give one or the other.")
    return given if kinds == {False} else None
