"""A sample of what a block reads, to measure what a change of its weights costs its outputs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mlcalib.models.running import BlockInputs, first_output, run_block


class Probe:
    """A sample of what a block reads, to tell what a change costs the output of a module in it."""

    def __init__(self, sequences: list[tuple[Tensor, BlockInputs]]) -> None:
        """Take hidden states [1, seq_len, hidden size], each with the block's other arguments."""
        self._sequences = sequences

    def output_loss(self, block: nn.Module, name: str) -> Callable[[], float]:
        """Run the block as it is, and return what measures the output of a module of it.

        Args:
            block: the block.
            name: of the module; "" is the block.

        Returns:
            The mean squared difference between the module's output then and at the call, from the
            same input.
        """
        module = block.get_submodule(name)
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append((args, kwargs, first_output(output)))

        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            for state, inputs in self._sequences:
                run_block(block, state, inputs)
        finally:
            handle.remove()

        def loss() -> float:
            square = sum(
                float((first_output(module(*args, **kwargs)) - output).float().square().sum())
                for args, kwargs, output in calls
            )
            return square / sum(output.numel() for _, _, output in calls)

        return loss
