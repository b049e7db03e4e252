"""The text on which models are evaluated."""

import logging
from typing import TYPE_CHECKING

from mlcalib.calibration_sets import Stream, stream
from mlcalib.calibration_sets.chat import render
from mlcalib.corpora import Documents, Tally, left_out, open_corpus
from mlcalib.languages import LanguageSet, language_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def eval_text(
    tokenizer: "PreTrainedTokenizerBase",
    languages: str | LanguageSet,
    corpus: str,
    separator: str | None,
    tokens: int,
) -> dict[str, Stream]:
    """Tokenise the beginning of each language's evaluation text, enough to score ``tokens``.

    Args:
        tokenizer: a fast tokenizer.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its evaluation text must be plain text.
        separator: what is put between documents, as for ``mlcalib.calibration``.
        tokens: the number of tokens to score in each language, after its first token.

    Returns:
        Language → text, in whole documents. It has fewer tokens if there is no more text.

    Raises:
        FileNotFoundError: the corpus does not have a language.
        ValueError: a language or the corpus is unknown, or a text cannot be read.
    """
    named = languages if isinstance(languages, LanguageSet) else language_set(languages)
    source = open_corpus(corpus)
    documents = {code: source.documents(code, "eval") for code in named.weights}
    return {
        code: _text(tokenizer, given, code, separator, tokens) for code, given in documents.items()
    }


def _text(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    code: str,
    separator: str | None,
    tokens: int,
) -> Stream:
    tally = Tally()
    texts = render(tokenizer, documents.read(tally), None, f"The eval text in '{code}'", tally)
    found = stream(tokenizer, texts, separator, tokens + 1)  # the first is not scored
    if counts := left_out(tally.read, tally.dropped):
        _log.warning("eval text in '%s': %s", code, counts)
    return found
