"""The calibration text on its way through the model, one block at a time."""

import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.errors import named
from mlcalib.models import Adapter
from mlcalib.models.running import (
    BlockInputs,
    embed,
    first_output,
    run_block,
    run_to_last_input,
    watching,
)
from mlcalib.statistics import StatisticSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BlockStatistics = dict[str, dict[str, StatisticSet]]
"""Input of a block → language → its statistics."""


class Stopwatch:
    """Time spent per phase.

    Attributes:
        seconds: phase → seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add time to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class Probe:
    """A sample of what a block reads, to tell what a change costs the output of a module in it."""

    def __init__(self, hidden: list[Tensor], inputs: BlockInputs) -> None:
        """Take hidden states [1, seq_len, hidden size] and the block's other arguments."""
        self._hidden = hidden
        self._inputs = inputs

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
            for state in self._hidden:
                run_block(block, state, self._inputs)
        finally:
            handle.remove()

        def loss() -> float:
            square = sum(
                float((first_output(module(*args, **kwargs)) - output).float().square().sum())
                for args, kwargs, output in calls
            )
            return square / sum(output.numel() for _, _, output in calls)

        return loss


class Flow:
    """The hidden states of every sequence of the calibration set, moving from block to block."""

    def __init__(
        self,
        model: "PreTrainedModel",
        adapter: Adapter,
        calibration: CalibrationSet,
        stopwatch: Stopwatch,
    ) -> None:
        """Embed every sequence: the hidden states that the first block reads."""
        self._adapter = adapter
        self._calibration = calibration
        self._stopwatch = stopwatch
        self._hidden: dict[str, list[Tensor]] = {}  # language → [1, seq_len, hidden size] each
        # Block → its other arguments, the same for every sequence: they have one shape.
        self._inputs: dict[str, BlockInputs] = {}
        with stopwatch.timed("forward"):
            for language in calibration.ids:
                self._hidden[language] = []
                for ids, _ in calibration.sequences(language):
                    state, self._inputs = embed(model, adapter, ids)
                    self._hidden[language].append(state)

    def probe(self, block_name: str, tokens: int) -> Probe:
        """Return a sample of at least ``tokens`` tokens, and a sequence of each language.

        Sequences of the languages in turn. To be called before the hidden states move on.
        """
        rounds = zip_longest(*self._hidden.values())
        in_turn = [state for states in rounds for state in states if state is not None]
        count = max(-(-tokens // in_turn[0].shape[1]), len(self._hidden))
        return Probe(in_turn[:count], self._inputs[block_name])

    def collect(
        self,
        block_name: str,
        block: nn.Module,
        kinds: Iterable[str],
        *,
        skipped: Container[str],
        advance: bool,
    ) -> BlockStatistics:
        """Return the block's statistics; with ``advance`` its outputs become the hidden states.

        Inputs that only ``skipped`` linears (names in the model) read have none.
        """
        linears = self._adapter.linears_of(block)
        statistics: BlockStatistics = {
            name: {
                language: StatisticSet(kinds, self._adapter.linear(block, members[0]).in_features)
                for language in self._hidden
            }
            for name, members in linears.items()
            if any(f"{block_name}.{member}" not in skipped for member in members)
        }
        if not (statistics or advance):
            return statistics
        inputs = self._inputs[block_name]
        in_statistics = 0.0
        language, counted = "", 0  # of the sequence that runs

        def see(name: str, x: Tensor, positions: Tensor | None) -> None:
            nonlocal in_statistics
            if name not in statistics:
                return
            start = time.perf_counter()
            x = x[:counted] if positions is None else x[positions < counted]
            with named(f"input of {block_name}.{linears[name][0]}, text in '{language}'"):
                statistics[name][language].update(x)
            in_statistics += time.perf_counter() - start

        start = time.perf_counter()
        with watching(self._adapter, block, see):
            for language, states in self._hidden.items():
                sequences = self._calibration.sequences(language)
                for index, (_, counted) in enumerate(sequences):  # noqa: B007 - read by see
                    if advance:
                        states[index] = run_block(block, states[index], inputs)
                    else:
                        run_to_last_input(self._adapter, block, states[index], inputs)
        self._stopwatch.add("gram", in_statistics)
        self._stopwatch.add("forward", time.perf_counter() - start - in_statistics)
        return statistics

    def advance(self, block_name: str, block: nn.Module) -> None:
        """Move the hidden states through the block as it is now."""
        with self._stopwatch.timed("forward"):
            for states in self._hidden.values():
                for index, state in enumerate(states):
                    states[index] = run_block(block, state, self._inputs[block_name])
