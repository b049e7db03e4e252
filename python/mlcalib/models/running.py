"""Run a model up to its first block, and a block on its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mlcalib.models.base import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward that has done its work
    """Ends a forward."""


@dataclass(frozen=True)
class BlockInputs:
    """What blocks are called with besides the hidden states: the same for every sequence.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keyword arguments: the mask, the positions and their embeddings.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def embed(model: "PreTrainedModel", adapter: Adapter, ids: Tensor) -> tuple[Tensor, BlockInputs]:
    """Return what the first block is called with.

    Args:
        model: the model.
        adapter: its family.
        ids: [1, seq_len] int64.

    Returns:
        The hidden states [1, seq_len, hidden size], and the other arguments, which depend on the
        shape of ``ids`` alone.
    """
    _, first = adapter.named_blocks(model)[0]
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Stop

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    (args, kwargs), *_ = caught
    if args:
        return args[0], BlockInputs(args[1:], kwargs)
    hidden = kwargs.pop("hidden_states")
    return hidden, BlockInputs((), kwargs)


def run_block(block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Tensor:
    """Return a block's output, [1, seq_len, hidden size]."""
    output = block(hidden, *inputs.args, **inputs.kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@contextmanager
def watching(
    adapter: Adapter, block: nn.Module, see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``see(input, x)`` with every input that linears of the block read, while inside.

    x is [1, seq_len, channels]. Linears that read the same input share one call.
    """
    handles = []
    for name, linears in adapter.linears_of(block).items():

        def hook(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            see(name, args[0])

        handles.append(adapter.linear(block, linears[0]).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_to_last_input(
    adapter: Adapter, block: nn.Module, hidden: Tensor, inputs: BlockInputs
) -> None:
    """Run a block as far as the input of its last linear: all that statistics need."""
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
