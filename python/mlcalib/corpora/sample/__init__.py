"""A small text in each of some languages, for demonstrations that need no download."""

from importlib.resources import files

from mlcalib.corpora import Documents
from mlcalib.corpora._reader import read_documents
from mlcalib.corpora.base import Split, registry


@registry.register
class SampleCorpus:
    """``sample``: the text in this folder, which a machine wrote and nobody reviewed (README.md).

    Raises:
        ValueError: an argument was given.
    """

    name = "sample"

    def __init__(self, argument: str) -> None:
        if argument:
            raise ValueError(f"The corpus 'sample' takes no argument, but '{argument}' was given.")

    def documents(self, language: str, split: Split, seed: int | None = None) -> Documents:
        """See ``Corpus.documents``."""
        return read_documents(files(__name__), language, split, seed)
