"""The statistics of one block, while text runs through it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlcalib.common.errors import named
from mlcalib.common.ranks import Ranks
from mlcalib.statistics import StatisticSet
from mlcalib.statistics.joined import JoinedUpdates, tokens_at_once
from mlcalib.statistics.pairwise import Node, PairwiseSum
from mlcalib.statistics.summed import sum_over_ranks

if TYPE_CHECKING:
    from mlcalib.quantization.prefixes import BlockStatistics, Prefix
    from mlcalib.quantization.propagation import Observe


class Gathering:
    """Keeps the statistics of every input of a block and every prefix of the text.

    Languages come one after another, and each of them sequence by sequence. Sums are made as
    ``PairwiseSum`` makes them, so that they are the same bits over any number of ranks.

    Attributes:
        seconds: spent on statistics; on a GPU, on asking for them.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        kinds: Iterable[str],
        place: Callable[[str, str], str],
        device: torch.device,
        observe: "Observe | None",
        ranks: Ranks,
        of_leaf: int,
    ) -> None:
        """Begin a block.

        Args:
            channels: input → its number of channels.
            kinds: the statistics.
            place: what errors call an input and a language.
            device: where activations are.
            observe: sees what the statistics of whole texts see.
            ranks: the processes of the run; each gathers its share of every text.
            of_leaf: sequences of a leaf, see ``PairwiseSum``.
        """
        kinds = tuple(kinds)
        self._empty = {name: StatisticSet(kinds, size) for name, size in channels.items()}
        self._place, self._device, self._observe = place, device, observe
        self._ranks, self._of_leaf = ranks, of_leaf
        self._at_once = tokens_at_once(device)
        self._found: BlockStatistics = {name: {} for name in channels}
        self._language = ""
        self._sums: dict[str, PairwiseSum] = {}  # of the leaves that are full
        self._leaf = -1
        self._running: dict[str, JoinedUpdates] = {}  # of this leaf
        self._length: int | None = None
        self._whole: Prefix | None = None
        self._ending: Sequence[tuple[int, Prefix]] = ()
        self._ends: dict[tuple[str, Prefix], JoinedUpdates] = {}  # input, prefix that ends
        self._ended: dict[tuple[str, Prefix], PairwiseSum] = {}
        self.seconds = 0.0

    def begin_text(self, language: str, whole: "Prefix") -> None:
        """Go on to the text of a language, all of which is the prefix ``whole``."""
        self._language, self._whole = language, whole
        self._sums = {name: PairwiseSum() for name in self._empty}
        self._leaf, self._running = -1, {}

    def begin_sequence(
        self, index: int, ending: "Sequence[tuple[int, Prefix]]", length: int | None
    ) -> None:
        """Go on to a sequence.

        Args:
            index: of the sequence in its text.
            ending: how many of its tokens the prefixes hold that end in it.
            length: how many of its tokens are text, from the first on; None for all.
        """
        start = time.perf_counter()
        if index // self._of_leaf != self._leaf:
            self._end_leaf()
            self._leaf = index // self._of_leaf
            self._running = {
                name: JoinedUpdates(each.empty_like(), self._at_once)
                for name, each in self._empty.items()
            }
        self._ending, self._length = ending, length
        for name, each in self._running.items():
            for _, prefix in ending:
                # What goes on needs its own; the whole text is all there is.
                self._ends[name, prefix] = each if prefix == self._whole else each.copy()
        if any(prefix == self._whole for _, prefix in ending):
            self._running = {}
        self.seconds += time.perf_counter() - start

    def see(self, name: str, x: Tensor, positions: Tensor | None, reference: Tensor | None) -> None:
        """Add x [tokens, channels] of an input; see ``watching``."""
        if name not in self._found:
            return
        start = time.perf_counter()
        with named(self._place(name, self._language)):
            for counted, prefix in self._ending:
                seen = x[:counted] if positions is None else x[positions < counted]
                like = None if reference is None else reference[:counted]
                self._ends[name, prefix].update(seen, like)
                if prefix == self._whole and self._observe is not None:
                    self._observe(name, self._language, seen)
            if name in self._running:
                if self._length is not None:
                    x = x[: self._length] if positions is None else x[positions < self._length]
                    reference = None if reference is None else reference[: self._length]
                self._running[name].update(x, reference)
                if self._observe is not None:
                    self._observe(name, self._language, x)
        self.seconds += time.perf_counter() - start

    def end_sequence(self) -> None:
        """Finish the prefixes that ended."""
        start = time.perf_counter()
        for (name, prefix), each in self._ends.items():
            with named(self._place(name, self._language)):
                sums = self._so_far(name, prefix)
                sums.push(Node(0, self._leaf, each.finish()))
                self._end(name, prefix, sums)
        self._ends = {}
        self.seconds += time.perf_counter() - start

    def pass_sequence(self, ending: "Sequence[tuple[int, Prefix]]") -> None:
        """Pass a sequence of another rank: here the prefixes that end in it have all they get."""
        start = time.perf_counter()
        self._end_leaf()
        for _, prefix in ending:
            for name in self._empty:
                self._end(name, prefix, self._so_far(name, prefix))
        self.seconds += time.perf_counter() - start

    def end_text(self) -> None:
        """Finish the text of a language."""
        self._end_leaf()
        self._sums = {}

    def together(self) -> None:
        """Add up what all ranks have, language by language; collective.

        Only when all texts have run: a rank may have no share of some of them.
        """
        for language in dict.fromkeys(prefix.language for _, prefix in self._ended):
            keys = [key for key in self._ended if key[1].language == language]
            found = {key: self._ended.pop(key) for key in keys}
            like = {key: self._empty[key[0]] for key in keys}
            sums = sum_over_ranks(found, like, self._ranks, self._device)
            for (name, prefix), statistics in sums.items():
                self._found[name][prefix] = statistics

    def finished(self) -> "BlockStatistics":
        """Return the statistics.

        Here, and at no update, a GPU is waited for.

        Raises:
            ValueError: there was NaN or Inf; names the input and the language.
        """
        for name, by_prefix in self._found.items():
            for prefix, statistics in by_prefix.items():
                with named(self._place(name, prefix.language)):
                    statistics.check_finite()
        return self._found

    def _end_leaf(self) -> None:
        for name, each in self._running.items():
            with named(self._place(name, self._language)):
                self._sums[name].push(Node(0, self._leaf, each.finish()))
        self._leaf, self._running = -1, {}

    def _so_far(self, name: str, prefix: "Prefix") -> PairwiseSum:
        """Return the sum of the leaves before this one, which a prefix can change."""
        return self._sums[name] if prefix == self._whole else self._sums[name].copy()

    def _end(self, name: str, prefix: "Prefix", sums: PairwiseSum) -> None:
        if self._ranks.alone:
            self._found[name][prefix] = sums.total()  # before more of the text takes memory
        else:
            self._ended[name, prefix] = sums
