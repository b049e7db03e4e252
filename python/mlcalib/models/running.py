"""Run a model up to its first block, and a block on its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib.models.base import Adapter
from mlcalib.models.device import moved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stop(Exception):  # noqa: N818 - no error: it ends a forward that has done its work
    """Ends a forward."""


@dataclass(frozen=True)
class BlockInputs:
    """What a block is called with besides the hidden states.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keyword arguments: the mask, the positions and their embeddings.
        by_name: whether the hidden states are given by their name, too.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool = False

    @property
    def places(self) -> dict[int | str, Any]:
        """Where an argument stands (its number after the hidden states, or its name) → it."""
        found: dict[int | str, Any] = dict(enumerate(self.args))
        return found | self.kwargs

    def to(self, device: torch.device) -> "BlockInputs":
        """Return them with their tensors on a device."""
        return replace(self, args=moved(self.args, device), kwargs=moved(self.kwargs, device))


def embed(
    model: "PreTrainedModel",
    adapter: Adapter,
    ids: Tensor,
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> tuple[Tensor, dict[str, BlockInputs]]:
    """Return what the blocks are called with; none of them runs.

    Args:
        model: the model.
        adapter: its family.
        ids: [1, seq_len] int64; brought to where the embeddings are.
        beside: what else the model is given, such as the pixels of images, brought there, too.

    Returns:
        The hidden states [1, seq_len, hidden size] that the first block reads, and block → its
        other arguments. Blocks differ in them where some attend to all that came before and some to
        a window. What one block makes for another is not in them: see ``Adapter.handed_over``.

    Raises:
        NotImplementedError: the model changes hidden states between blocks, as some do where there
            are images.
    """
    blocks = adapter.named_blocks(model)
    inputs: dict[str, BlockInputs] = {}
    first: list[Tensor] = []

    def catching(name: str, block: nn.Module) -> Callable[..., Any]:
        def catch(*args: Any, **kwargs: Any) -> Any:
            hidden = hidden_of(args, kwargs)
            inputs[name] = other_arguments(args, kwargs)
            first.append(hidden)
            as_first = hidden.data_ptr() == first[0].data_ptr()
            if not (as_first or torch.equal(hidden.to(first[0].device), first[0])):
                raise NotImplementedError(
                    f"{type(model).__name__} changes hidden states before {name}, outside of its "
                    "blocks; mlcalib takes text from block to block. Leave out images."
                )
            if len(inputs) == len(blocks):
                raise Stop
            return adapter.passed_on(block, hidden)

        return catch

    with _replaced(blocks, catching), suppress(Stop):
        start, runs = _start(model, adapter), adapter.language_model(model)
        given = {name: each.to(start) for name, each in beside.items()}
        runs(input_ids=ids.to(start), use_cache=False, **given)
    return first[0], inputs


def logits_of(model: "PreTrainedModel", adapter: Adapter, ids: Tensor, state: Tensor) -> Tensor:
    """Return what the model makes of the hidden states that its last block returns.

    Args:
        model: the model; its blocks do not run.
        adapter: its family.
        ids: of the sequence, [1, seq_len] int64; brought to where the embeddings are, as is
            ``state``.
        state: [1, seq_len, hidden size].

    Returns:
        The logits [1, seq_len, vocabulary].
    """
    blocks = adapter.named_blocks(model)
    last, start = blocks[-1][0], _start(model, adapter)
    ids, state = ids.to(start), state.to(start)

    def passing(name: str, block: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = state if name == last else hidden_of(args, kwargs)
            return adapter.passed_on(block, hidden)

        return forward

    with _replaced(blocks, passing):
        found: Tensor = adapter.language_model(model)(input_ids=ids, use_cache=False).logits
    return found


def _start(model: "PreTrainedModel", adapter: Adapter) -> torch.device:
    """Return where the embeddings are."""
    found: torch.device = adapter.language_model(model).get_input_embeddings().weight.device
    return found


@contextmanager
def _replaced(
    blocks: list[tuple[str, nn.Module]],
    forward_of: Callable[[str, nn.Module], Callable[..., Any]],
) -> Iterator[None]:
    """Give blocks other forwards while inside: what forward_of(name, block) returns."""
    own = {name: vars(block).get("forward") for name, block in blocks}  # e.g. accelerate's
    try:
        for name, block in blocks:
            block.forward = forward_of(name, block)
        yield
    finally:
        for name, block in blocks:
            del block.forward  # the class's own again
            if (forward := own[name]) is not None:
                block.forward = forward


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a block is called with: the first argument.

    Raises:
        ValueError: the first argument is no floating tensor, nor is one called hidden_states.
    """
    found = args[0] if args else kwargs.get("hidden_states")
    if not (isinstance(found, Tensor) and found.is_floating_point() and found.dim() > 1):
        raise ValueError("a block is called without hidden states")
    return found


def other_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockInputs:
    """Return the arguments of a call of a block but for the hidden states."""
    if args:
        return BlockInputs(args[1:], kwargs)
    others = {key: each for key, each in kwargs.items() if key != "hidden_states"}
    return BlockInputs((), others, by_name=True)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Return the output of a block with other hidden states in it: the first element."""
    if not isinstance(output, tuple | list):
        return hidden
    values = (hidden, *output[1:])
    is_named = hasattr(output, "_fields")
    return type(output)(*values) if is_named else type(output)(values)


def call_block(block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Any:
    """Return all that a block returns; the hidden states are the first of it."""
    if inputs.by_name:
        return block(hidden_states=hidden, **inputs.kwargs)
    return block(hidden, *inputs.args, **inputs.kwargs)


def run_block(block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Tensor:
    """Return a block's hidden states, [1, seq_len, hidden size]."""
    return first_output(call_block(block, hidden, inputs))


def first_output(output: Any) -> Tensor:
    """Return the hidden states that a module of transformers returned, alone or as the first."""
    result: Tensor = output[0] if isinstance(output, tuple | list) else output
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


def run_to_input(
    adapter: Adapter, block: nn.Module, name: str, hidden: Tensor, inputs: BlockInputs
) -> None:
    """Run a block as far as an input of its linears; of its last one: all that statistics need.

    Where only linears of an expert read it, and no token is routed there, the block runs to its
    end.
    """
    reader = adapter.linear(block, adapter.linears_of(block)[name][0])

    def stop(_: nn.Module, __: tuple[Tensor, ...]) -> None:
        raise Stop

    handle = reader.register_forward_pre_hook(stop)
    try:
        run_block(block, hidden, inputs)
    except Stop:
        pass
    finally:
        handle.remove()
