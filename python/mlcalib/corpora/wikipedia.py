"""Text of Wikipedia."""

from typing import ClassVar

from mlcalib.corpora.base import registry
from mlcalib.corpora.hub import HubCorpus


@registry.register
class WikipediaCorpus(HubCorpus):
    """``wikipedia``: ``wikimedia/wikipedia``, the articles of each language as plain text.

    It has only one split, so one article in ten is kept for evaluation (see ``HubCorpus``).
    ``wikipedia:NAME`` reads a copy on the hub or in a folder. The options are those of ``hub``.
    """

    codes: ClassVar[tuple[str, ...]] = ("wikipedia",)
    default: ClassVar[str] = "wikimedia/wikipedia"
