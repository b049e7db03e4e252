"""Sources of text: a corpus gives the documents of a language, to calibrate on or to evaluate."""

from mlcalib.corpora._documents import (
    Conversation,
    Document,
    Documents,
    Tally,
    left_out,
    notes,
    said_of,
    shuffled,
    window_shuffled,
)
from mlcalib.corpora._rows import INVALID, is_valid, read_conversation
from mlcalib.corpora.base import Corpus, Split, check_corpus, open_corpus, registry

__all__ = [
    "INVALID",
    "Conversation",
    "Corpus",
    "Document",
    "Documents",
    "Split",
    "Tally",
    "check_corpus",
    "is_valid",
    "left_out",
    "notes",
    "open_corpus",
    "read_conversation",
    "registry",
    "said_of",
    "shuffled",
    "window_shuffled",
]
