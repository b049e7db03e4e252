"""The processes that do one run together: what each has a share in, and how they add it up.

torchrun starts them. What they say to each other goes through torch's process groups: gloo for
tensors of the CPU, NCCL for those of NVIDIA GPUs.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mlcalib.common.errors import printable

_JOINED = 1 << 20  # bytes; smaller tensors are sent together
_LONGEST = timedelta(hours=12)  # that a rank waits for others that live: they may be solving


class RankLostError(RuntimeError):
    """Another rank of the run has ended; says which, and of what."""


class Peers(Protocol):
    """Knows what became of the other ranks."""

    def lost(self) -> str:
        """Return which rank has ended and of what, once no more can be sent."""


class Ranks:
    """The processes of a run, of which this is one. Without a group it is alone.

    What is called collective is called by every rank, in the same order.

    Attributes:
        rank: which of them this is, from 0; 0 writes.
        size: how many there are.
        local: which of those on this machine this is.
        local_size: how many are on this machine.
        traffic: bytes that this rank has sent and received.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Any = None,
        *,
        local: int = 0,
        local_size: int = 1,
        peers: Peers | None = None,
    ) -> None:
        """Meet the other ranks; collective.

        Args:
            rank: see the attributes, likewise ``size``, ``local`` and ``local_size``.
            size: see there.
            store: torch's, where they meet; needed for more than one.
            local: see there.
            local_size: see there.
            peers: is asked who is lost when others can no longer be reached.
        """
        self.rank, self.size, self.local, self.local_size = rank, size, local, local_size
        self.traffic = 0
        self._peers = peers
        self._groups: dict[str, Any] = {}
        self._sent: dict[tuple[int, int], int] = {}  # sender, receiver → messages
        self._store = store
        self._taken: dict[str, int] = {}  # name → the last number, alone
        if size > 1:
            if store is None:
                raise ValueError(f"{size} ranks need a store to meet at.")
            with self._talking():
                self._groups["cpu"] = dist.ProcessGroupGloo(
                    _apart(store, "gloo"), rank, size, _LONGEST
                )

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    def send(self, to: int, tensors: Sequence[Tensor]) -> list[Callable[[], None]]:
        """Begin to send tensors to a rank, which calls ``receive`` for them.

        Returns:
            What waits until they are sent; until then they must not change.
        """
        waits: list[Callable[[], None]] = []
        for batch in _batches(tensors):
            group, sent = self._group(batch.joined())
            with self._talking():
                work = group.send([sent], to, self._tag(self.rank, to))
            self.traffic += sent.nbytes
            waits.append(partial(self._done, work, sent))
        return waits

    def receive(self, sender: int, tensors: Sequence[Tensor]) -> None:
        """Fill tensors with those that a rank sends, of the same shapes and dtypes, contiguous."""
        for batch in _batches(tensors):
            buffer = batch.buffer()
            group, received = self._group(buffer)
            with self._talking():
                group.recv([received], sender, self._tag(sender, self.rank)).wait()
            self.traffic += received.nbytes
            batch.fill(received)

    def broadcast(self, owner: int, tensors: Sequence[Tensor]) -> None:
        """Fill tensors with those of one rank, bit for bit; collective.

        Args:
            owner: the rank that has them.
            tensors: everywhere of the same shapes and dtypes, contiguous.
        """
        if self.alone:
            return
        options = dist.BroadcastOptions()
        options.rootRank = owner
        for batch in _batches(tensors):
            group, sent = self._group(batch.joined() if self.rank == owner else batch.buffer())
            with self._talking():
                group.broadcast([sent], options).wait()
            self.traffic += sent.nbytes
            if self.rank != owner:
                batch.fill(sent)

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order; collective.

        Args:
            value: anything that can be pickled.
        """
        if self.alone:
            return [value]
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        own = torch.tensor([len(content)])
        group = self._groups["cpu"]
        with self._talking():
            group.allgather([sizes], [own]).wait()
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(content)] = content
            found = [torch.zeros_like(padded) for _ in range(self.size)]
            group.allgather([found], [padded]).wait()
        self.traffic += longest * self.size
        return [
            pickle.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(found, sizes, strict=True)
        ]

    def of_first(self, value: Any) -> Any:
        """Return the value of rank 0, whatever others have; collective."""
        return self.gathered(value if self.writes else None)[0]

    def check_same(self, inputs: Mapping[str, Any]) -> None:
        """Make sure that all ranks were started with the same; collective.

        Args:
            inputs: what decides the run, by name; mappings are compared entry by entry.

        Raises:
            ValueError: something differs; names it and the ranks. On every rank.
        """
        first, *others = self.gathered(dict(_flat(inputs, "")))
        for rank, other in enumerate(others, 1):
            for name in dict.fromkeys([*first, *other]):
                if first.get(name) != other.get(name):
                    raise ValueError(
                        f"rank 0 and rank {rank} do not do the same: {printable(name)} is "
                        f"{_short(first.get(name))} and {_short(other.get(name))}. Give all "
                        "machines the same versions, model, text and options."
                    )

    def take(self, name: str) -> int:
        """Return the next of the numbers from 0 that no rank has taken under a name."""
        if self._store is None:
            self._taken[name] = self._taken.get(name, -1) + 1
            return self._taken[name]
        with self._talking():
            return int(self._store.add(f"take/{name}", 1)) - 1

    def wait(self) -> None:
        """Return when every rank is here; collective."""
        self.gathered(None)

    def _done(self, work: dist.Work, sent: Tensor) -> None:
        with self._talking():
            work.wait()
        del sent  # was kept until now

    def _tag(self, sender: int, to: int) -> int:
        """Return the number of the next message from one rank to another."""
        self._sent[sender, to] = self._sent.get((sender, to), 0) + 1
        return self._sent[sender, to]

    def _group(self, tensor: Tensor) -> tuple[Any, Tensor]:
        """Return what sends a tensor, and the tensor as it takes it: of other devices a copy."""
        if tensor.device.type != "cuda":
            return self._groups["cpu"], tensor.cpu()
        if "cuda" not in self._groups:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = _LONGEST
            with self._talking():
                self._groups["cuda"] = dist.ProcessGroupNCCL(
                    _apart(self._store, "nccl"), self.rank, self.size, options
                )
        return self._groups["cuda"], tensor

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Say who is lost where torch only says that a connection was closed."""
        try:
            yield
        except RuntimeError as error:
            if self._peers is None:
                raise
            raise RankLostError(self._peers.lost()) from error


def _apart(store: Any, name: str) -> Any:
    """Return a store whose keys begin with a name."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]  # public, not in its stub


def balanced(
    costs: Sequence[float], size: int, decided: Mapping[int, int] = MappingProxyType({})
) -> list[int]:
    """Return which rank does each task: the costliest first, to the rank that has least to do.

    Args:
        costs: of each task.
        size: number of ranks.
        decided: task → the rank that must do it.
    """
    load = [0.0] * size
    owners = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda each: (each not in decided, -costs[each])):
        owners[task] = decided.get(task, min(range(size), key=load.__getitem__))
        load[owners[task]] += costs[task]
    return owners


@dataclass(frozen=True)
class _Batch:
    """Tensors of one device that are sent together: a large one by itself, small ones joined."""

    tensors: list[Tensor]

    @property
    def _size(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def joined(self) -> Tensor:
        """Return their bytes; of a single one its own memory."""
        if len(self.tensors) == 1:
            return _bytes(self.tensors[0])
        return torch.cat([_bytes(tensor) for tensor in self.tensors])

    def buffer(self) -> Tensor:
        """Return where their bytes can be received; of a single one its own memory."""
        if len(self.tensors) == 1:
            return _bytes(self.tensors[0])
        return torch.empty(self._size, dtype=torch.uint8, device=self.tensors[0].device)

    def fill(self, received: Tensor) -> None:
        """Give the tensors what was received."""
        sizes = [tensor.nbytes for tensor in self.tensors]
        for tensor, part in zip(self.tensors, torch.split(received, sizes), strict=True):
            if part.data_ptr() != tensor.data_ptr():
                # A copy begins where any dtype may.
                tensor.copy_(part.clone().view(tensor.dtype).view_as(tensor))


def _batches(tensors: Sequence[Tensor]) -> list[_Batch]:
    large = [_Batch([tensor]) for tensor in tensors if tensor.nbytes >= _JOINED]
    small: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if 0 < tensor.nbytes < _JOINED:
            small.setdefault(tensor.device, []).append(tensor)
    return [*large, *(_Batch(each) for each in small.values())]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, with the names that lead to them."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}".strip("."))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = str(value)
    return printable(text if len(text) <= 60 else f"{text[:57]}...")
