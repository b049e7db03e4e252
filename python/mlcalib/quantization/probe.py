"""A sample of what a block reads, to measure what a change of its weights costs its outputs."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mlcalib.common.ranks import Ranks
from mlcalib.models.running import BlockInputs, first_output, run_block


class Probe:
    """A sample of what a block reads, to tell what a change costs the output of a module in it."""

    def __init__(
        self, sequences: Mapping[int, tuple[Tensor, BlockInputs]], ranks: Ranks | None = None
    ) -> None:
        """Take a sample.

        Args:
            sequences: place in the sample → hidden states [1, seq_len, hidden size], with the
                block's other arguments; this rank's share.
            ranks: the processes of the run; losses are those of the whole sample, and collective.
        """
        self._sequences = sequences
        self._ranks = Ranks() if ranks is None else ranks

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
        calls: list[tuple[int, tuple[Any, ...], dict[str, Any], Tensor]] = []
        running = 0

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append((running, args, kwargs, first_output(output)))

        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            for place, (state, inputs) in self._sequences.items():
                running = place
                run_block(block, state, inputs)
        finally:
            handle.remove()

        def loss() -> float:
            own = [
                (
                    place,
                    float((first_output(module(*args, **kwargs)) - output).float().square().sum()),
                )
                for place, args, kwargs, output in calls
            ]
            every = [each for of_rank in self._ranks.gathered(own) for each in of_rank]
            # In the order of the sample, whoever has run it: a sum depends on it.
            squares = sum(square for _, square in sorted(every, key=lambda each: each[0]))
            return float(squares / numbers)

        numbers = sum(self._ranks.gathered(sum(output.numel() for *_, output in calls)))
        return loss
