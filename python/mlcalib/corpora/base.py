"""What a corpus is, and how one is found by name."""

import inspect
import os
from collections.abc import Mapping
from typing import Literal, Protocol
from urllib.parse import unquote

from mlcalib.common.registry import Registry, unknown
from mlcalib.corpora._documents import Documents

Split = Literal["calib", "eval"]


class Corpus(Protocol):
    """A source of text, which a user names as ``NAME:ARGUMENT?OPTION=VALUE&…``.

    The class is called with the argument, and with the options as keywords; all are strings.

    Attributes:
        name: the name of the source in results, e.g. ``files:/data/text``.
    """

    name: str

    def documents(self, language: str, split: Split, seed: int | None = None) -> Documents:
        """Return the documents of a language: text to calibrate on, or other text to evaluate on.

        Args:
            language: the code of the language in the catalogue.
            split: ``calib`` or ``eval``; no document is in both.
            seed: the seed with which the documents are shuffled; None keeps the order of the
                source.

        Raises:
            FileNotFoundError: the corpus does not have the language or the split.
            ValueError: the text cannot be read. This may be raised later, when it is read.
        """
        ...


registry: Registry[Corpus] = Registry("corpus", package="mlcalib.corpora", group="mlcalib.corpora")


def check_corpus(given: object) -> None:
    """Refuse text that is neither named nor given by language.

    Raises:
        TypeError: as for a list of documents, of which nobody knows the language.
    """
    if not isinstance(given, str | Mapping):
        raise TypeError(
            f"corpus is a {type(given).__name__}, expected a name ('sample', 'files:PATH', …) or a "
            "mapping from languages to documents: corpus={'en': ['a document', …], 'sw': […]}."
        )


def open_corpus(spec: str) -> Corpus:
    """Open a corpus.

    Args:
        spec: ``NAME`` or ``NAME:ARGUMENT``, to which ``?OPTION=VALUE&…`` can be added (with ``%26``
            for an ``&`` in a value). ``sample`` is the small demonstration text in this package;
            ``files:PATH`` is a folder of ``LANG/{calib,eval}.{txt,jsonl,parquet}``; ``c4``,
            ``wikipedia`` and ``hub:NAME`` are streamed from the Hugging Face hub;
            ``translated:MODEL?source=en&corpus=SPEC`` is another corpus in translation. Plug-ins
            add others. The docstring of each corpus lists its options. The path of a folder that
            exists may contain ``?``.

    Raises:
        ValueError: there is no such corpus, or it does not take the argument or an option.
        FileNotFoundError: the folder does not exist.
        ImportError: a package that the corpus needs is not installed; the message names it.
    """
    name, argument, query = _parts(spec)
    if name not in registry.names() and os.path.exists(os.path.expanduser(spec)):
        raise ValueError(f"The corpus '{spec}' is a path; write 'files:{spec}'.")
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


def _parts(spec: str) -> tuple[str, str, str]:
    """Return name, argument and options of a spec, as they are written."""
    name, colon, rest = spec.partition(":")
    if "?" in name or not colon:
        name, _, query = spec.partition("?")
        return name, "", query
    pieces = rest.split("?")
    for count in range(len(pieces), 1, -1):  # the longest path that is there
        path = "?".join(pieces[:count])
        if os.path.exists(os.path.expanduser(path)):
            return name, path, "?".join(pieces[count:])
    argument, _, query = rest.partition("?")
    return name, argument, query


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
