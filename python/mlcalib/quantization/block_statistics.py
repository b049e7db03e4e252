"""The statistics of one block, while text runs through it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlcalib.common.errors import named
from mlcalib.statistics import StatisticSet
from mlcalib.statistics.joined import JoinedUpdates, tokens_at_once

if TYPE_CHECKING:
    from mlcalib.quantization.propagation import BlockStatistics, Observe, Prefix


class Gathering:
    """Keeps the statistics of every input of a block and every prefix of the text.

    Languages come one after another, and each of them sequence by sequence.

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
    ) -> None:
        """Begin a block.

        Args:
            channels: input → its number of channels.
            kinds: the statistics.
            place: what errors call an input and a language.
            device: where activations are.
            observe: sees what the statistics of whole texts see.
        """
        self._channels, self._kinds, self._place = channels, tuple(kinds), place
        self._at_once, self._observe = tokens_at_once(device), observe
        self._found: BlockStatistics = {name: {} for name in channels}
        self._language = ""
        self._running: dict[str, JoinedUpdates] = {}
        self._ending: Sequence[tuple[int, Prefix]] = ()
        self._length: int | None = None
        self._whole: Prefix | None = None
        self._ends: dict[tuple[str, Prefix], JoinedUpdates] = {}  # input, prefix that ends
        self.seconds = 0.0

    def begin_text(self, language: str, whole: "Prefix") -> None:
        """Go on to the text of a language, all of which is the prefix ``whole``."""
        self._language, self._whole = language, whole
        self._running = {
            name: JoinedUpdates(StatisticSet(self._kinds, size), self._at_once)
            for name, size in self._channels.items()
        }

    def begin_sequence(self, ending: "Sequence[tuple[int, Prefix]]", length: int | None) -> None:
        """Go on to a sequence.

        Args:
            ending: how many of its tokens the prefixes hold that end in it.
            length: how many of its tokens are text, from the first on; None for all.
        """
        self._ending, self._length = ending, length
        for name, each in self._running.items():
            for _, prefix in ending:
                # What goes on needs its own; the whole text is all there is.
                self._ends[name, prefix] = each if prefix == self._whole else each.copy()
        if any(prefix == self._whole for _, prefix in ending):
            self._running = {}

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
                self._found[name][prefix] = each.finish()
        self._ends = {}
        self.seconds += time.perf_counter() - start

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
