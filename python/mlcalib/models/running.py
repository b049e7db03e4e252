"""Run a model up to its first block, and a block on its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib.models.base import Adapter
from mlcalib.models.device import moved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward that has done its work
    """Ends a forward."""


@dataclass(frozen=True)
class BlockInputs:
    """What a block is called with besides the hidden states: the same for every sequence.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keyword arguments: the mask, the positions and their embeddings.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device) -> "BlockInputs":
        """Return them with their tensors on a device."""
        return BlockInputs(moved(self.args, device), moved(self.kwargs, device))


def embed(
    model: "PreTrainedModel", adapter: Adapter, ids: Tensor
) -> tuple[Tensor, dict[str, BlockInputs]]:
    """Return what the blocks are called with; none of them runs.

    Args:
        model: the model.
        adapter: its family.
        ids: [1, seq_len] int64.

    Returns:
        The hidden states [1, seq_len, hidden size] that the first block reads, and block → its
        other arguments, which depend on the shape of ``ids`` alone. Blocks differ in them where
        some attend to all that came before and some to a window.
    """
    blocks = adapter.named_blocks(model)
    inputs: dict[str, BlockInputs] = {}
    first: list[Tensor] = []

    def catching(name: str) -> Callable[..., Tensor]:
        def catch(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            inputs[name] = BlockInputs(args, kwargs)
            first.append(hidden_states)
            if len(inputs) == len(blocks):
                raise _Stop
            return hidden_states

        return catch

    own = {name: vars(block).get("forward") for name, block in blocks}  # e.g. accelerate's
    try:
        for name, block in blocks:
            block.forward = catching(name)
        model(input_ids=ids, use_cache=False)
    except _Stop:
        pass
    finally:
        for name, block in blocks:
            del block.forward  # the class's own again
            if (forward := own[name]) is not None:
                block.forward = forward
    return first[0], inputs


def run_block(block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Tensor:
    """Return a block's output, [1, seq_len, hidden size]."""
    return first_output(block(hidden, *inputs.args, **inputs.kwargs))


def first_output(output: Any) -> Tensor:
    """Return the hidden states that a module of transformers returned, alone or in a tuple."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@contextmanager
def watching(
    adapter: Adapter, block: nn.Module, see: Callable[[str, Tensor, Tensor | None], None]
) -> Iterator[None]:
    """Call ``see(input, x, positions)`` with every input that linears of the block read.

    x is [tokens, channels]. Linears that read the same input share one call. An expert sees some of
    a sequence's tokens, in its own order: positions, int64 [tokens], tells which; else it is None.
    An expert that sees no token is not called.
    """
    handles = []
    for name, linears in adapter.linears_of(block).items():
        routed = _Routed()
        if (expert := adapter.expert_of(linears[0])) is not None:
            handles.append(block.get_submodule(expert).register_forward_pre_hook(routed))

        def hook(
            _: nn.Module, args: tuple[Tensor, ...], name: str = name, routed: _Routed = routed
        ) -> None:
            see(name, args[0].flatten(0, -2), routed.positions)

        handles.append(adapter.linear(block, linears[0]).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Routed:
    """Keeps the positions that an expert is called with."""

    positions: Tensor | None = None

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.positions = args[1]


def run_to_last_input(
    adapter: Adapter, block: nn.Module, hidden: Tensor, inputs: BlockInputs
) -> None:
    """Run a block as far as the input of its last linear: all that statistics need.

    A block whose last linear is an expert's that no token is routed to runs to its end.
    """
    last = adapter.linear(block, list(adapter.linears_of(block).values())[-1][0])

    def stop(_: nn.Module, __: tuple[Tensor, ...]) -> None:
        raise _Stop

    handle = last.register_forward_pre_hook(stop)
    try:
        run_block(block, hidden, inputs)
    except _Stop:
        pass
    finally:
        handle.remove()
