"""The sink of a run over ranks: one keeps the blocks, and all have what they need of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mlcalib._core import QuantizedLinear
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_write import Piece
from mlcalib.formats import Format
from mlcalib.quantization.sink import Content, FileSink, Sink


class SharedSink:
    """Keeps blocks on rank 0, in files that no other rank needs to see; see ``Sink``.

    ``record``, ``pieces`` and ``contents`` are for rank 0 alone; ``keep`` and ``restore`` are
    called by all.
    """

    def __init__(self, sink: FileSink | None, blocks: list[str], ranks: Ranks) -> None:
        """Tell all ranks which blocks are finished; collective.

        Args:
            sink: of rank 0; None elsewhere.
            blocks: names of all blocks.
            ranks: the processes of the run.
        """
        self._sink, self._ranks = sink, ranks
        done = [] if sink is None else [name for name in blocks if sink.has(name)]
        self._done = set(ranks.of_first(done))

    @property
    def checkpoint_format(self) -> Format:
        """See ``Sink``."""
        return self._own.checkpoint_format

    def has(self, block_name: str) -> bool:
        """See ``Sink``."""
        return block_name in self._done

    def keep(
        self,
        block_name: str,
        block: nn.Module,
        linears: Mapping[str, QuantizedLinear],
        record: Mapping[str, Any],
    ) -> None:
        """See ``Sink``; other ranks go on while rank 0 writes."""
        if self._sink is not None:
            self._sink.keep(block_name, block, linears, record)
        self._done.add(block_name)

    def restore(self, block_name: str, block: nn.Module) -> None:
        """See ``Sink``; collective: rank 0 reads the block and sends it."""
        if self._sink is not None:
            self._sink.restore(block_name, block)
        else:
            for module in block.modules():
                for key, parameter in module.named_parameters(recurse=False):
                    # Another block may share what is there.
                    own = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
                    setattr(module, key, own)
        self._ranks.broadcast(0, [each.detach() for each in block.parameters()])

    def record(self, block_name: str) -> dict[str, Any]:
        """See ``Sink``."""
        return self._own.record(block_name)

    def pieces(self, block_name: str) -> dict[str, Piece]:
        """See ``Sink``."""
        return self._own.pieces(block_name)

    def contents(self, block_name: str) -> Iterator[Content]:
        """See ``Sink``."""
        return self._own.contents(block_name)

    @property
    def _own(self) -> FileSink:
        if self._sink is None:
            raise RuntimeError("only rank 0 has the files of blocks")
        return self._sink


def shared_sink(own: FileSink | None, blocks: list[str], ranks: Ranks) -> Sink:
    """Return a sink for a rank: its own where it is alone; collective. See ``SharedSink``."""
    return own if own is not None and ranks.alone else SharedSink(own, blocks, ranks)
