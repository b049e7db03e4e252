"""Where text comes from: a corpus gives the documents of a language, by split."""

from mlcalib.corpora.base import Corpus, Split, open_corpus, registry

__all__ = ["Corpus", "Split", "open_corpus", "registry"]
