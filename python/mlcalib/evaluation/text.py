"""The text on which models are evaluated."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mlcalib.calibration_sets import CalibrationSet, Stream, build, stream
from mlcalib.calibration_sets.chat import render
from mlcalib.calibration_sets.tokens import check_documents
from mlcalib.corpora import Document, Documents, Tally, left_out, notes, open_corpus, said_of
from mlcalib.languages import LanguageSet, language_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def eval_text(
    tokenizer: "PreTrainedTokenizerBase",
    languages: str | LanguageSet,
    corpus: str | Mapping[str, Sequence[str]],
    separator: str | None,
    tokens: int,
    *,
    window_bos: bool = True,
) -> dict[str, Stream]:
    """Tokenise the beginning of each language's evaluation text, enough to score ``tokens``.

    Args:
        tokenizer: a fast tokenizer.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its evaluation text must be plain text. Or a mapping
            of languages to documents (strings).
        separator: what is put between documents, as for ``mlcalib.calibration``.
        tokens: the number of tokens to score in each language, after its first token.
        window_bos: whether every window begins as the tokenizer begins a text; see
            ``mlcalib.calibration``.

    Returns:
        Language → text, in whole documents except for long ones (see ``stream``). It has fewer
        tokens if there is no more text.

    Raises:
        FileNotFoundError: the corpus does not have a language.
        ValueError: a language or the corpus is unknown, or a text cannot be read.
    """
    found = {}
    remarks: list[tuple[str, str]] = []
    for code, documents in _documents(languages, corpus).items():
        tally = Tally()
        texts = render(tokenizer, documents.read(tally), None, f"The eval text in '{code}'", tally)
        # The first token is not scored.
        found[code] = stream(tokenizer, texts, separator, tokens + 1, window_bos)
        counted = left_out(tally.read, tally.dropped, tally.examples)
        said = [counted, *notes(tally.noted, tally.examples)]
        remarks += [(code, remark) for remark in said if remark]
    for remark in said_of(remarks):
        _log.warning("eval text: %s", remark)
    return found


def eval_sequences(
    tokenizer: "PreTrainedTokenizerBase",
    languages: str | LanguageSet,
    corpus: str,
    separator: str | None,
    tokens: int,
    *,
    seq_len: int,
    window_bos: bool = True,
    allow_short: bool = False,
) -> CalibrationSet:
    """Pack the first tokens of each language's eval split into sequences, to run block by block.

    Args:
        tokenizer: a fast tokenizer.
        languages: see ``eval_text``.
        corpus: see ``eval_text``.
        separator: see ``eval_text``.
        tokens: tokens of each language.
        seq_len: tokens of a sequence, 2 or more.
        window_bos: see ``eval_text``.
        allow_short: whether to use what there is where a language has too little text.

    Raises:
        FileNotFoundError: the corpus lacks a language.
        ValueError: see ``eval_text``; or too little text, see ``mlcalib.calibration_sets.build``.
    """
    named = languages if isinstance(languages, LanguageSet) else language_set(languages)
    texts = _documents(named, corpus)
    return build(
        tokenizer,
        texts,
        LanguageSet(named.name, dict.fromkeys(texts, 1)),
        tokens=tokens * len(texts),
        seq_len=seq_len,
        separator=separator,
        window_bos=window_bos,
        corpus=corpus,
        allow_short=allow_short,
    )


def _documents(
    languages: str | LanguageSet, corpus: str | Mapping[str, Sequence[str]]
) -> dict[str, Documents]:
    named = languages if isinstance(languages, LanguageSet) else language_set(languages)
    if not isinstance(corpus, str):
        return {code: _given(corpus, code) for code in named.weights}
    source = open_corpus(corpus)
    return {code: source.documents(code, "eval") for code in named.weights}


def _given(corpus: Mapping[str, Sequence[str]], code: str) -> Documents:
    """Return the documents that were given for a language."""
    if code not in corpus:
        raise ValueError(
            f"The corpus that was given has no text in '{code}'; it has: {', '.join(corpus)}."
        )
    documents = corpus[code]
    if isinstance(documents, str) or not all(isinstance(each, str) for each in documents):
        raise ValueError(
            f"The corpus that was given holds other things than strings in '{code}'; perplexity is "
            "measured on plain text: give a list of documents."
        )
    check_documents(documents, f"The text in '{code}'")

    def read(tally: Tally) -> Iterator[Document]:
        tally.read = len(documents)
        yield from documents

    return Documents(read, {})
