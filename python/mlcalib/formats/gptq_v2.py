"""``gptq`` with zero points as they are (checkpoint_format gptq_v2), symmetric linears too."""

from typing import ClassVar

from mlcalib.formats.base import formats
from mlcalib.formats.gptq import Gptq


@formats.register
class GptqV2(Gptq):
    """See ``mlcalib.formats.gptq``."""

    stored: ClassVar[str] = "packed (GPTQ layout, checkpoint_format gptq_v2)"

    def __init__(self, version: int | None = 2) -> None:
        super().__init__(version)
