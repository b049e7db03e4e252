"""The ranks that torchrun started, and how each learns that another has ended."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from mlcalib.common.errors import printable
from mlcalib.common.ranks import RankLostError, Ranks

_BEAT = 3.0  # seconds between two signs of life
_SILENCE = 40.0  # seconds without one: the process is frozen, or its machine is gone
_NO_ANSWER = "the machine where ranks meet does not answer; its torchrun has ended, or is cut off"
_ANSWER = timedelta(seconds=60)  # in which torchrun's store answers at the start


@contextlib.contextmanager
def joined_ranks(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Meet the processes that torchrun started with this one; without torchrun, be alone.

    Where one ends with an error, all others end too, and say which it was and of what. Rank 0 alone
    prints; errors are printed by the rank that has them.

    Args:
        environment: with the variables that torchrun sets.

    Raises:
        RankLostError: another rank has ended.
        SystemExit: it has ended with the error that this one has too, and has said it.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    rank = int(environment["RANK"])
    life = _Life(lambda: _store(environment, rank), rank, size)
    try:
        ranks = Ranks(
            rank,
            size,
            _store(environment, rank),
            local=int(environment["LOCAL_RANK"]),
            local_size=int(environment["LOCAL_WORLD_SIZE"]),
            peers=life,
        )
        life.begin()
        with contextlib.ExitStack() as stack:
            if rank > 0:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield ranks
            ranks.wait()  # rank 0 may still be writing
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        handler = get_error_handler()  # what torchrun's own summary shows
        handler.initialize()
        handler.record_exception(error)
        if not isinstance(error, RankLostError) and life.said_already(error):
            raise SystemExit(1) from error
        raise
    finally:
        life.end()


class _Life:
    """Tells the others that this rank lives, and looks whether they do; see ``ranks.Peers``."""

    def __init__(self, connect: Callable[[], Any], rank: int, size: int) -> None:
        self._connect, self._rank, self._size = connect, rank, size
        self._store = connect()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._heard = time.monotonic()  # when the store answered last
        self._store.set(_who(rank), f"{socket.gethostname()} {os.getpid()}")

    def begin(self) -> None:
        """Begin to give signs of life, from a thread with a connection of its own."""
        self._heard = time.monotonic()
        self._threads = [
            threading.Thread(target=self._beat, args=(self._connect(),), daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End it; others may still look."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def said_already(self, error: BaseException) -> bool:
        """Tell the others of what this rank ends; return whether one of them ended of the same."""
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # the store may be gone
            first = self._store.compare_set("error", "", f"{self._rank}\n{text}").decode()
            rank, _, said = first.partition("\n")
            return bool(rank != str(self._rank) and said == text)
        return False

    def lost(self) -> str:
        """See ``ranks.Peers``: waits for an error that one of them says, or for silence."""
        try:
            before, end = self._beats(), time.monotonic() + 3 * _BEAT
            while time.monotonic() < end:
                if self._store.check(["error"]):
                    rank, _, said = self._store.get("error").decode().partition("\n")
                    return f"{self._name(int(rank))} ended with {said}"
                for rank in range(self._size):
                    if self._is_gone(rank):
                        return self._silent(rank)
                time.sleep(0.2)
            now = self._beats()
            still = [rank for rank in range(self._size) if before[rank] == now[rank]]
            others = [rank for rank in still if rank != self._rank]
            if others:
                return self._silent(others[0])
        except RuntimeError:
            return _NO_ANSWER
        return "the connection to another rank was closed, but all of them live"

    def _beat(self, store: Any) -> None:
        """Give signs of life; where another gives none for long, end this process.

        The main thread may be waiting for the other in a call that nothing interrupts.
        """
        seen = {rank: ("", time.monotonic()) for rank in range(self._size)}
        count = 0
        while not self._stop.wait(_BEAT):
            count += 1
            try:
                store.set(_pulse(self._rank), str(count))
                for rank in range(self._size):
                    beat = _read(store, _pulse(rank))
                    if beat != seen[rank][0]:
                        seen[rank] = beat, time.monotonic()
                    elif rank != self._rank and time.monotonic() - seen[rank][1] > _SILENCE:
                        _end(f"rank {self._rank}: {self._silent(rank)}")
                self._heard = time.monotonic()
            except RuntimeError:
                if not self._stop.is_set():
                    _end(f"rank {self._rank}: {_NO_ANSWER}")

    def _watch(self) -> None:
        """End this process where its signs of life no longer come through: a call may hang."""
        while not self._stop.wait(_BEAT):
            if time.monotonic() - self._heard > _SILENCE:
                _end(f"rank {self._rank}: {_NO_ANSWER}")

    def _beats(self) -> list[str]:
        return [_read(self._store, _pulse(rank)) for rank in range(self._size)]

    def _name(self, rank: int) -> str:
        host, _, process = _read(self._store, _who(rank)).partition(" ")
        return f"rank {rank} (process {process} on {host})"

    def _silent(self, rank: int) -> str:
        return (
            f"{self._name(rank)} ended without a word: it was killed, perhaps because memory ran "
            "out, or its machine is gone"
        )

    def _is_gone(self, rank: int) -> bool:
        """Return whether a rank on this machine has no process any more."""
        host, _, process = _read(self._store, _who(rank)).partition(" ")
        status = Path("/proc") / (process or "self") / "stat"
        if host != socket.gethostname() or not Path("/proc/self/stat").is_file():
            return False
        try:
            return status.read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True


def _store(environment: Mapping[str, str], rank: int) -> Any:
    """Return a connection of its own to where the ranks of this start of torchrun meet."""
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]  # public, not in its stub
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        is_master=not agent and rank == 0,
        timeout=_ANSWER,
        wait_for_workers=False,
        multi_tenant=True,
    )
    again = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"mlcalib/{again}", store)  # type: ignore[attr-defined]


def _read(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""


def _who(rank: int) -> str:
    return f"who/{rank}"


def _pulse(rank: int) -> str:
    return f"pulse/{rank}"


def _end(said: str) -> None:
    print(f"RankLostError: {printable(said)}", file=sys.stderr, flush=True)
    os._exit(1)
