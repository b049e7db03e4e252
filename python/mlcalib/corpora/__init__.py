"""Sources of text: a corpus gives the documents of a language, to calibrate on or to evaluate."""

from mlcalib.corpora._documents import (
    Document,
    Documents,
    Tally,
    left_out,
    shuffled,
    window_shuffled,
)
from mlcalib.corpora.base import Corpus, Split, open_corpus, registry

__all__ = [
    "Corpus",
    "Document",
    "Documents",
    "Split",
    "Tally",
    "left_out",
    "open_corpus",
    "registry",
    "shuffled",
    "window_shuffled",
]
