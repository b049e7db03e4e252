"""The sequences of a calibration text, of which each rank runs its share."""

from bisect import bisect_left
from collections.abc import Collection, Iterator
from itertools import accumulate, zip_longest

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.ranks import Ranks
from mlcalib.quantization.dealing import dealt
from mlcalib.quantization.expert_rows import Step
from mlcalib.quantization.prefixes import Mixture, Prefix

At = tuple[str, int]
"""A sequence: its language, and its number in the language's text."""


class DealtSequences:
    """Which sequences there are, whose they are, and which prefixes end in them."""

    def __init__(
        self, calibration: CalibrationSet, prefixes: Collection[Prefix], ranks: Ranks
    ) -> None:
        """Deal the sequences that some prefix holds.

        Args:
            calibration: the text.
            prefixes: what statistics are kept of, at least one of each language.
            ranks: the processes of the run.
        """
        self._whole = calibration.seq_len
        self._lengths = {language: calibration.lengths_of(language) for language in calibration.ids}
        self._ends = {language: [*accumulate(each)] for language, each in self._lengths.items()}
        self.prefixes: dict[str, list[Prefix]] = {language: [] for language in calibration.ids}
        for prefix in sorted(prefixes, key=lambda each: each.tokens):
            self.prefixes[prefix.language].append(prefix)
        counts = {code: self._count(each[-1]) for code, each in self.prefixes.items()}
        self._own = dealt(counts, self._whole, ranks.rank, ranks.size)

    def __iter__(self) -> Iterator[At]:
        """Give every sequence of this rank."""
        for language, own in self._own.items():
            for index in own:
                yield language, index

    def has(self, language: str, index: int) -> bool:
        """Return whether a sequence is this rank's."""
        return index in self._own[language]

    def steps(self, language: str) -> list[Step]:
        """Return all sequences of a text, those of other ranks too."""
        ends, lengths = self._ends[language], self._lengths[language]
        ending: dict[int, list[tuple[int, Prefix]]] = {}
        for prefix in self.prefixes[language]:
            last = self._count(prefix) - 1
            before = ends[last] - lengths[last]
            ending.setdefault(last, []).append((prefix.tokens - before, prefix))
        return [
            (index, ending.get(index, []), None if length == self._whole else length)
            for index, length in enumerate(lengths[: max(ending) + 1])
        ]

    def in_turn(self, mixture: Mixture, tokens: int) -> list[At]:
        """Return sequences of the mixture's languages in turn, those of other ranks too.

        They hold at least so many tokens, and one sequence is of each language.
        """
        counts = {each.language: self._count(each) for each in mixture}
        rounds = zip_longest(*([(code, i) for i in range(n)] for code, n in counts.items()))
        every = [at for row in rounds for at in row if at is not None]
        return every[: max(-(-tokens // self._whole), len(counts))]

    def _count(self, prefix: Prefix) -> int:
        """Return how many sequences of its language hold a prefix."""
        return bisect_left(self._ends[prefix.language], prefix.tokens) + 1
