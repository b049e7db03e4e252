"""Text of the web, from mC4."""

from typing import ClassVar

from mlcalib.corpora.base import registry
from mlcalib.corpora.hub import HubCorpus


@registry.register
class C4Corpus(HubCorpus):
    """``c4``: ``allenai/c4``, English C4 and mC4 in a hundred languages (arXiv 2010.11934).

    Calibration reads the split ``train``, and evaluation ``validation``. ``c4:NAME`` reads a copy
    on the hub or in a folder. The options are those of ``hub`` (see ``HubCorpus``).
    """

    codes: ClassVar[tuple[str, ...]] = ("mc4",)
    default: ClassVar[str] = "allenai/c4"
