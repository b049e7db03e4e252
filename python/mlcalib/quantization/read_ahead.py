"""Blocks of a source on their devices; the next is read and copied while one is worked on."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from mlcalib.common.errors import named
from mlcalib.models.device import move_block
from mlcalib.quantization.source import Source

_Opened = tuple[ExitStack, nn.Module]


class Blocks:
    """Gives blocks one after the other, each on its device.

    With ``ahead``, a thread reads the block after the one that was given and copies it to its
    device, from pinned memory where the device copies from there. It is one block ahead and no
    more: at most two blocks are on a device, and one tensor of the next in pinned memory.
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        devices: Mapping[str, torch.device],
        *,
        ahead: bool,
    ) -> None:
        """Take what is read, in this order, and where to.

        Args:
            source: the model.
            names: blocks.
            devices: block → where it runs.
            ahead: whether the next one is read while one is worked on.
        """
        self._source, self._names, self._devices = source, list(names), devices
        self._pool = ThreadPoolExecutor(1, "read-ahead") if ahead else None
        self._next: Future[_Opened] | None = None

    @contextmanager
    def block(self, name: str) -> Iterator[nn.Module]:
        """Give the next block; ``name`` says which that is expected to be.

        Raises:
            ValueError, OSError: the block cannot be read; names it.
            torch.OutOfMemoryError: there is no room for it.
        """
        opened = self._next.result() if self._next is not None else self._open(name)
        self._names.remove(name)
        self._next = None
        with opened[0]:
            if self._pool is not None and self._names:
                self._next = self._pool.submit(self._open, self._names[0])
            yield opened[1]

    def close(self) -> None:
        """Give back a block that was read and not taken."""
        if self._pool is None:
            return
        if self._next is not None and not self._next.cancel() and not self._next.exception():
            self._next.result()[0].close()
        self._next = None
        self._pool.shutdown()

    @torch.no_grad()
    def _open(self, name: str) -> _Opened:
        stack = ExitStack()
        try:
            with named(name):
                block = stack.enter_context(self._source.block(name))
                move_block(block, self._devices[name])
        except OSError as error:
            stack.close()
            raise OSError(error.errno, f"{name}: {error.strerror}", error.filename) from error
        except BaseException:
            stack.close()
            raise
        return stack, block
