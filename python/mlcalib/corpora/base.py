"""What a corpus is, and how one is found by name."""

from typing import Literal, Protocol

from mlcalib.registry import Registry

Split = Literal["calib", "eval"]


class Corpus(Protocol):
    """A source of text, made from what follows the colon of its spec (``files:PATH``).

    Attributes:
        name: what results say the text came from, e.g. ``files:/data/text``.
    """

    name: str

    def __init__(self, argument: str) -> None: ...

    def documents(self, language: str, split: Split) -> list[str]:
        """Return the documents of a language: text to calibrate on, or held-out text to evaluate.

        Raises:
            FileNotFoundError: the corpus lacks the language or the split.
            ValueError: the text cannot be read, or there is none.
        """
        ...


registry: Registry[Corpus] = Registry("corpus", package="mlcalib.corpora", group="mlcalib.corpora")


def open_corpus(spec: str) -> Corpus:
    """Open a corpus.

    Args:
        spec: ``sample``, the small demonstration text in this package; or ``files:PATH``, a folder
            of ``LANG/{calib,eval}.{txt,jsonl}``; or ``NAME:ARGUMENT`` of another plug-in.

    Raises:
        ValueError: no such corpus, or an argument it does not take.
        FileNotFoundError: the folder does not exist.
    """
    name, _, argument = spec.partition(":")
    return registry.get(name)(argument)
