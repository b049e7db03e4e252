"""What experts read, kept until a text has run, and summed expert by expert."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.common.ranks import Ranks
from mlcalib.models import Adapter
from mlcalib.quantization.block_statistics import Gathering
from mlcalib.statistics import StatisticSet, grows_with_square
from mlcalib.statistics.summed import tell_all

if TYPE_CHECKING:
    from mlcalib.quantization.prefixes import BlockStatistics, Prefix

Taken = Callable[[str, "dict[Prefix, StatisticSet]"], None]
"""Called with an input of an expert and its statistics of a text, as soon as they are summed; what
it drops of them is forgotten before the next expert's are made."""

Step = tuple[int, "Sequence[tuple[int, Prefix]]", int | None]
"""A sequence of a text: its index, how many of its tokens the prefixes hold that end in it, and how
many of its tokens are text; None for all."""


def expert_owners(adapter: Adapter, block: nn.Module, size: int) -> dict[str, int]:
    """Return input of an expert → the rank that sums and solves it, of ``size``.

    A rank has experts that follow each other, and as many as others, give or take one.
    """
    inputs: dict[str, list[str]] = {}
    for name, members in adapter.linears_of(block).items():
        if (expert := adapter.expert_of(members[0])) is not None:
            inputs.setdefault(expert, []).append(name)
    return {
        name: number * size // len(inputs)
        for number, names in enumerate(inputs.values())
        for name in names
    }


class ExpertRows:
    """Keeps the rows that experts read of a text, and sums them when it has run.

    A Gram of every expert for each part of a text takes more memory than the rows of a language,
    of which each token has a few. Rows go to the rank that solves the expert, which alone has its
    Grams, and one expert's are summed at a time. Sums are those of ``Gathering``, bit for bit.

    Attributes:
        found: input → prefix → statistics; on other ranks than the expert's, those alone that do
            not grow with the square of the channels.
        seconds: spent on statistics; on a GPU, on asking for them.
        waited: seconds that were spent on sending, receiving and waiting for others.
    """

    def __init__(
        self,
        owners: Mapping[str, int],
        channels: Mapping[str, int],
        kinds: Iterable[str],
        place: Callable[[str, str], str],
        device: torch.device,
        ranks: Ranks,
        of_leaf: int,
        taken: Taken | None,
    ) -> None:
        """Begin a block.

        Args:
            owners: input → the rank that sums it.
            channels: input → its number of channels.
            kinds: the statistics.
            place: see ``Gathering``, likewise ``device``, ``ranks`` and ``of_leaf``.
            device: see there.
            ranks: see there.
            of_leaf: see there.
            taken: takes the statistics of an input and a text.
        """
        self._owners, self._channels, self._kinds = owners, channels, tuple(kinds)
        self._small = [kind for kind in self._kinds if not grows_with_square(kind)]
        self._place, self._device, self._of_leaf = place, device, of_leaf
        self._ranks, self._taken = ranks, taken
        self._rows: dict[str, list[tuple[int, Tensor, Tensor]]] = {name: [] for name in owners}
        self._index = -1
        self._length: int | None = None
        self.found: BlockStatistics = {name: {} for name in owners}
        self.seconds = self.waited = 0.0

    def begin_sequence(self, index: int, length: int | None) -> None:
        """Go on to a sequence of this rank; see ``Step``."""
        self._index, self._length = index, length

    def see(self, name: str, x: Tensor, positions: Tensor) -> None:
        """Keep x [tokens, channels] of an input; see ``watching``."""
        if self._length is None:
            x = x.clone()  # a model may write over it
        else:
            own = positions < self._length
            x, positions = x[own], positions[own]
        self._rows[name].append((self._index, x, positions.int()))

    def end_text(self, whole: "Prefix", steps: Sequence[Step]) -> None:
        """Sum the text of a language, all of which is the prefix ``whole``; collective.

        Args:
            whole: see there.
            steps: all its sequences, also those of other ranks.
        """
        start, before = time.perf_counter(), self.seconds
        own = {name: [(at, len(x)) for at, x, _ in rows] for name, rows in self._rows.items()}
        dtype = next((x.dtype for rows in self._rows.values() for _, x, _ in rows), None)
        told = self._ranks.gathered((dtype, own))
        sending: list[Callable[[], None]] = []
        for name, owner in self._owners.items():
            if owner != self._ranks.rank and (rows := self._rows[name]):
                self._rows[name] = []
                x, positions = (torch.cat(each) for each in list(zip(*rows, strict=True))[1:])
                sending += self._ranks.send(owner, [x, positions])
        for name, owner in self._owners.items():
            if owner == self._ranks.rank:
                by_prefix = self._summed(name, self._of_all(name, told), whole, steps)
                if self._taken is not None:
                    self._taken(name, by_prefix)
            else:
                ended = [prefix for _, ending, _ in steps for _, prefix in ending]
                by_prefix = {
                    prefix: StatisticSet(self._small, self._channels[name]) for prefix in ended
                }
            self.found[name] |= by_prefix
        for wait in sending:
            wait()
        self._tell(whole.language)
        self.waited += time.perf_counter() - start - (self.seconds - before)

    def _of_all(
        self, name: str, told: Sequence[tuple[torch.dtype | None, dict[str, list[tuple[int, int]]]]]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return sequence → the rows of an input and their positions, of all ranks."""
        found = {index: (x, positions) for index, x, positions in self._rows[name]}
        self._rows[name] = []
        for rank, (dtype, counts) in enumerate(told):
            if rank == self._ranks.rank or not counts[name]:
                continue
            sizes = [count for _, count in counts[name]]
            shape = (sum(sizes), self._channels[name])
            x = torch.empty(shape, dtype=dtype, device=self._device)
            positions = torch.empty(shape[0], dtype=torch.int32, device=self._device)
            self._ranks.receive(rank, [x, positions])
            parts = torch.split(x, sizes), torch.split(positions, sizes)
            pieces = zip(counts[name], *parts, strict=True)
            found |= {index: (rows, at) for (index, _), rows, at in pieces}
        return found

    def _summed(
        self,
        name: str,
        rows: Mapping[int, tuple[Tensor, Tensor]],
        whole: "Prefix",
        steps: Sequence[Step],
    ) -> "dict[Prefix, StatisticSet]":
        """Return the statistics of an input, as if its text ran now."""
        channels = {name: self._channels[name]}
        sums = Gathering(
            channels, self._kinds, self._place, self._device, None, Ranks(), self._of_leaf
        )
        sums.begin_text(whole.language, whole)
        for index, ending, length in steps:
            sums.begin_sequence(index, ending, length)
            if index in rows:
                sums.see(name, *rows[index], None)
            sums.end_sequence()
        sums.end_text()
        found = sums.finished()[name]
        self.seconds += sums.seconds
        return found

    def _tell(self, language: str) -> None:
        """Tell all ranks what is small of a language's statistics."""
        if self._ranks.alone:
            return
        for owner in range(self._ranks.size):
            sets = [
                each.only(self._small)
                for name, rank in self._owners.items()
                if rank == owner
                for prefix, each in self.found[name].items()
                if prefix.language == language
            ]
            tell_all(owner, sets, self._ranks, self._device)


def known_everywhere(
    sets: Mapping[str, StatisticSet],
    owners: Mapping[str, int],
    ranks: Ranks,
    device: torch.device,
) -> dict[str, StatisticSet]:
    """Return the statistics of experts, which one rank each has, on every rank; collective.

    Args:
        sets: input → its statistics, of this rank's experts all of them.
        owners: input of an expert → the rank that has them.
        ranks: the processes of the run.
        device: where tokens were added.
    """
    owners = {name: rank for name, rank in owners.items() if name in sets}
    own = next((sets[name].kinds for name, rank in owners.items() if rank == ranks.rank), None)
    kinds: tuple[str, ...] = next((each for each in ranks.gathered(own) if each is not None), ())
    found = {
        name: sets[name] if rank == ranks.rank else StatisticSet(kinds, sets[name].channels)
        for name, rank in owners.items()
    }
    for owner in range(ranks.size):
        of_owner = [found[name] for name, rank in owners.items() if rank == owner]
        tell_all(owner, of_owner, ranks, device)
    return found
