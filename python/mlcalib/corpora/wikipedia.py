"""Text of Wikipedia."""

from typing import ClassVar

from mlcalib.corpora.base import registry
from mlcalib.corpora.hub import HubCorpus


@registry.register
class WikipediaCorpus(HubCorpus):
    """``wikipedia``: ``wikimedia/wikipedia``, the articles of each language as plain text.

    It has one split, so one article in ten is for evaluation (see ``HubCorpus``).
    ``wikipedia:NAME`` reads a copy, on the hub or in a folder. Options as of ``hub``.
    """

    codes: ClassVar[tuple[str, ...]] = ("wikipedia",)
    default: ClassVar[str] = "wikimedia/wikipedia"
