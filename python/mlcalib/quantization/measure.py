"""What else is learnt of each block of a pass, from other text that moves beside."""

from collections.abc import Iterable
from typing import Protocol

from torch import nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.quantization.prefixes import BlockStatistics
from mlcalib.quantization.solve import References


class Measure(Protocol):
    """What else is learnt of each block, from other text that moves through the model beside."""

    @property
    def kinds(self) -> Iterable[str]:
        """Statistics of the calibration text that it looks at."""

    @property
    def text(self) -> CalibrationSet:
        """The other text."""

    @property
    def position(self) -> int:
        """Blocks that the other text has come through."""

    def start(self, index: int) -> None:
        """Get ready for a pass whose first open block is the one with this index."""

    def has(self, block_name: str) -> bool:
        """Return whether a block is done."""

    def begin(
        self, block_name: str, block: nn.Module, statistics: BlockStatistics
    ) -> References[str]:
        """Look at a block with its float weights; return Grams of the other text per language."""

    def end(self, block_name: str) -> None:
        """Keep what was learnt of the block, and go on to the next."""

    def skip(self, block_name: str, block: nn.Module) -> None:
        """Take the other text through a block that is done."""
