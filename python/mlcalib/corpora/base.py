"""What a corpus is, and how one is found by name."""

import inspect
from typing import Literal, Protocol
from urllib.parse import unquote

from mlcalib.common.registry import Registry, unknown
from mlcalib.corpora._documents import Documents

Split = Literal["calib", "eval"]


class Corpus(Protocol):
    """A source of text, made from its spec, ``NAME:ARGUMENT?OPTION=VALUE&…``.

    It is called with the argument, and the options as keywords; all are strings.

    Attributes:
        name: what results say the text came from, e.g. ``files:/data/text``.
    """

    name: str

    def documents(self, language: str, split: Split, seed: int | None = None) -> Documents:
        """Return the documents of a language: text to calibrate on, or held-out text to evaluate.

        Args:
            language: its code in the catalogue.
            split: ``calib`` or ``eval``; no document is in both.
            seed: what the documents are shuffled with; None for the order of the source.

        Raises:
            FileNotFoundError: the corpus lacks the language or the split.
            ValueError: the text cannot be read. Also raised when it is read.
        """
        ...


registry: Registry[Corpus] = Registry("corpus", package="mlcalib.corpora", group="mlcalib.corpora")


def open_corpus(spec: str) -> Corpus:
    """Open a corpus.

    Args:
        spec: ``NAME``, ``NAME:ARGUMENT``, either with ``?OPTION=VALUE&…`` after it (``%26`` for
            an ``&`` in a value). ``sample``, the small demonstration text in this package;
            ``files:PATH``, a folder of ``LANG/{calib,eval}.{txt,jsonl,parquet}``; ``c4``,
            ``wikipedia`` or ``hub:NAME``, streamed from the Hugging Face hub;
            ``translated:MODEL?source=en&corpus=SPEC``, another corpus in translation; or another
            plug-in. Their modules say which options they take.

    Raises:
        ValueError: no such corpus, or an argument or option it does not take.
        FileNotFoundError: the folder does not exist.
        ImportError: a package that the corpus needs is not installed; the message names it.
    """
    head, _, query = spec.partition("?")
    name, _, argument = head.partition(":")
    corpus = registry.get(name)
    options = _options(spec, query)
    known = list(inspect.signature(corpus).parameters)[1:]
    for option in options:
        if option not in known:
            raise ValueError(
                unknown(f"option of the corpus '{name}'", option, known)
                if known
                else f"The corpus '{name}' takes no options, but '{option}' was given."
            )
    return corpus(argument, **options)  # type: ignore[call-arg]  # a protocol has no __init__


def _options(spec: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in query.split("&") if query else []:
        name, _, value = item.partition("=")
        if not (name and value) or name in options:
            raise ValueError(
                f"The corpus '{spec}' has the option '{item}'; write 'OPTION=VALUE' after the '?', "
                "with '&' between options, each once."
            )
        options[name] = unquote(value)
    return options
