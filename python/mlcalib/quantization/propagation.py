"""The calibration text on its way through the model, one block at a time."""

import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.models.arguments import Arguments
from mlcalib.models.device import CPU
from mlcalib.models.running import (
    call_block,
    embed,
    first_output,
    run_block,
    run_to_input,
    watching,
)
from mlcalib.quantization.block_statistics import Gathering
from mlcalib.quantization.dealt_sequences import DealtSequences
from mlcalib.quantization.expert_rows import ExpertRows, Taken
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.quantization.prefixes import (
    BlockStatistics,
    Mixture,
    Prefix,
    half_of,
    mixture_of,
    with_halves,
)
from mlcalib.quantization.probe import Probe
from mlcalib.quantization.stream_writer import (
    Behind,
    Comparison,
    StreamWriter,
    find_stream_writer,
)
from mlcalib.statistics import compares
from mlcalib.statistics.pairwise import leaf_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Observe = Callable[[str, str, Tensor], None]
"""Called with the key of an input, a language and activations [tokens, channels]."""

Beside = Callable[[str], AbstractContextManager[object]]
"""Called with a language; what it returns is entered while a sequence of its text runs."""


class Flow:
    """The hidden states of every sequence of some text, moving from block to block."""

    def __init__(  # noqa: PLR0913 - what a flow is made of
        self,
        model: "PreTrainedModel",
        adapter: Adapter,
        calibration: CalibrationSet,
        stopwatch: Stopwatch,
        *,
        prefixes: Iterable[Prefix] = (),
        hidden: HiddenStates | None = None,
        comparing: bool = False,
        halves: bool = False,
        devices: Mapping[str, torch.device] = MappingProxyType({}),
        ranks: Ranks | None = None,
    ) -> None:
        """Embed every sequence: the hidden states that the first block reads.

        Args:
            model: its embeddings are used; its blocks need no weights yet.
            adapter: its family.
            calibration: the text.
            stopwatch: gets the times.
            prefixes: what statistics are kept of; by default all the text of each language.
            hidden: where hidden states live; those that are there already, of a run that goes on,
                are kept. By default in memory.
            comparing: whether the float model's hidden states move beside, for statistics that
                compare with them.
            halves: whether statistics are kept of the first half of each prefix too; see
                ``StatisticSet.half``.
            devices: block → where it runs; by default the CPU. Hidden states are brought there.
            ranks: the processes of the run, each of which has the hidden states of its share of
                the sequences; statistics are those of all. What takes or gives statistics or
                probes is collective.

        Raises:
            NotImplementedError: ``comparing`` with experts: the two models route tokens apart.
        """
        self._adapter = adapter
        self._compares = comparing
        experts = (adapter.has_experts(block) for _, block in adapter.named_blocks(model))
        if comparing and any(experts):
            raise NotImplementedError(
                "What is compared with the float model's activations needs the same tokens in both "
                "models, but experts of the two see different ones; leave out correction."
            )
        self._calibration = calibration
        self._stopwatch = stopwatch
        wanted = set(prefixes or mixture_of(calibration))
        self._halves = {each: half_of(each) for each in wanted} if halves else {}
        self._hidden = HiddenStates() if hidden is None else hidden
        if self._hidden.position > 0 and (adapter.handed_over or adapter.filled):
            self._hidden.restart()  # what blocks made for later ones is in no file
        self._devices = devices
        self._ranks = Ranks() if ranks is None else ranks
        every = wanted.union(self._halves.values())
        self._sequences = DealtSequences(calibration, every, self._ranks)
        self._arguments = Arguments(adapter, self._device)
        first = adapter.named_blocks(model)[0][0]
        fresh = self._hidden.position < 0
        with stopwatch.timed("forward"):
            for language in calibration.ids:
                images = calibration.inputs.get(language, {})
                for index, (ids, _) in enumerate(calibration.sequences(language)):
                    if not self._sequences.has(language, index):
                        continue
                    state, inputs = embed(model, adapter, ids, images.get(index, {}))
                    self._arguments.catch((language, index), inputs)
                    if comparing:
                        self._arguments.catch((_float(language), index), inputs)
                    if fresh:
                        state = state.to(self._device(first))
                        self._hidden.write(language, index, state)
                        if comparing:
                            self._hidden.write(_float(language), index, state)
        if fresh:
            self._hidden.turn()

    @property
    def position(self) -> int:
        """Blocks that the hidden states have come through."""
        return self._hidden.position

    @property
    def adapter(self) -> Adapter:
        """The model's family."""
        return self._adapter

    def turn(self) -> None:
        """Go on to the next block: what this one wrote is read from now on."""
        self._hidden.turn()

    def probe(self, block_name: str, tokens: int, mixture: Mixture) -> Probe:
        """Return a sample of at least ``tokens`` tokens, and a sequence of each language.

        Sequences of the mixture's languages in turn. To be called before the hidden states move on.
        """
        return Probe(
            {
                place: (self._read(block_name, *at), self._arguments.of(block_name, at, keeps=True))
                for place, at in enumerate(self._sequences.in_turn(mixture, tokens))
                if self._sequences.has(*at)
            },
            self._ranks,
        )

    def collect(  # noqa: PLR0913 - what is gathered, and of what
        self,
        block_name: str,
        block: nn.Module,
        kinds: Iterable[str],
        *,
        skipped: Container[str],
        advance: bool,
        observe: Observe | None = None,
        languages: Collection[str] | None = None,
        experts: Mapping[str, int] = MappingProxyType({}),
        taken: Taken | None = None,
        beside: Beside = nullcontext,
        behind: Behind | None = None,
        moves: bool = True,
    ) -> BlockStatistics:
        """Return the block's statistics; with ``advance`` its outputs are the next hidden states.

        Inputs that only ``skipped`` linears (names in the model) read have none. ``observe`` sees
        what the statistics of whole texts see. ``languages`` are those whose text runs, by default
        all. ``experts`` are inputs that are summed when a text has run, one after the other, each
        by a rank that alone has its Grams; ``taken`` gets their statistics of each text. ``beside``
        is called with the language of a sequence, and is entered while the sequence runs.
        ``behind`` is the block with what is solved of it, which the text runs through instead.
        ``moves`` says whether what the float model's block makes is its next hidden state.
        """
        kinds = tuple(kinds)
        comparing = self._compares and compares(kinds)
        moves = moves and comparing
        linears = self._adapter.linears_of(block)
        kept = {
            name: self._adapter.linear(block, members[0]).in_features
            for name, members in linears.items()
            if any(f"{block_name}.{member}" not in skipped for member in members)
        }
        if not (kept or advance or moves):
            return {}

        def place(name: str, language: str) -> str:
            return f"input of {block_name}.{linears[name][0]}, text in '{language}'"

        of_leaf = leaf_sequences(self._calibration.seq_len)
        device = self._device(block_name)
        apart = {name: rank for name, rank in experts.items() if name in kept}
        at_once = {name: size for name, size in kept.items() if name not in apart}
        found = Gathering(at_once, kinds, place, device, observe, self._ranks, of_leaf)
        rows = ExpertRows(apart, kept, kinds, place, device, self._ranks, of_leaf, taken)
        behind = behind or Behind(block)
        compared, end = self._comparison(block_name, behind, kept, comparing=comparing)

        def see(name: str, x: Tensor, positions: Tensor | None) -> None:
            if name in apart and positions is not None:
                rows.see(name, x, positions)
            elif not compared.holds(name, x):
                found.see(name, x, positions, compared.reference(name))

        start = time.perf_counter()
        for language, prefixes in self._sequences.prefixes.items():
            if languages is not None and language not in languages:
                continue
            found.begin_text(language, prefixes[-1])
            steps = self._sequences.steps(language)
            for index, ending, length in steps:
                if not self._sequences.has(language, index):
                    found.pass_sequence(ending)
                    continue
                found.begin_sequence(index, ending, length)
                rows.begin_sequence(index, length)
                if comparing:
                    compared.begin(
                        *self._run_float(block_name, block, language, index, end, moves=moves)
                    )
                with beside(language), watching(self._adapter, behind.block, see):
                    made = self._run(block_name, behind.block, language, index, end, moves=advance)
                if (written := compared.end(made)) is not None:
                    found.see(*written)
                found.end_sequence()
            found.end_text()
            if apart:
                rows.end_text(prefixes[-1], steps)
        run = time.perf_counter()
        if not self._ranks.alone:
            found.together()
            self._stopwatch.add("sum", time.perf_counter() - run + rows.waited)
        statistics = found.finished() | rows.found
        summing = found.seconds + rows.seconds
        self._stopwatch.add("gram", summing)
        self._stopwatch.add("forward", run - start - summing - rows.waited)
        return {name: with_halves(statistics[name], self._halves) for name in kept}

    def advance(self, block_name: str, block: nn.Module) -> None:
        """Make the next hidden states: the outputs of the block as it is now."""
        with self._stopwatch.timed("forward"):
            for language, index in self._sequences:
                self._move(block_name, block, language, index)

    def advance_float(self, block_name: str, block: nn.Module) -> None:
        """Make the next hidden states of the float model that moves beside, if there is one."""
        if self._compares:
            with self._stopwatch.timed("forward"):
                for language, index in self._sequences:
                    self._move(block_name, block, _float(language), index)

    def _comparison(
        self, block_name: str, behind: Behind, kept: Container[str], *, comparing: bool
    ) -> tuple[Comparison, str | None]:
        """Return what compares the inputs that are kept, and how far a block has to run for them.

        That is an input, or None for the end of the block.
        """
        names = self._adapter.linears_of(behind.block)
        last = next(reversed(names), None)
        if not comparing:
            return Comparison(), last
        reached = next((name for name in reversed(names) if name in kept), last)
        at_end = last is not None and last in kept
        writer = self._writer(block_name, behind.block) if at_end else None
        return Comparison(writer, behind.divided), reached if writer is None else None

    def _run_float(
        self,
        block_name: str,
        block: nn.Module,
        language: str,
        index: int,
        end: str | None,
        *,
        moves: bool,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run the float model's block on a sequence; see ``_run``.

        Returns:
            What each input reads, and what the block returns.
        """
        seen: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor, _: Tensor | None) -> None:
            seen[name] = x

        with watching(self._adapter, block, keep):
            output = self._run(block_name, block, _float(language), index, end, moves=moves)
        return seen, output

    def _writer(self, block_name: str, block: nn.Module) -> StreamWriter | None:
        """Return the linear of a block that makes up for errors of the hidden states too."""
        for language, index in self._sequences:
            run = partial(self._whole, block_name, block, language, index)
            return find_stream_writer(self._adapter, block, run)
        return None

    def _run(
        self,
        block_name: str,
        block: nn.Module,
        kept: str,
        index: int,
        end: str | None,
        *,
        moves: bool,
    ) -> Tensor | None:
        """Run a block on a sequence, kept under a name; return what it makes, if it gets so far.

        Args:
            block_name: its name.
            block: the block.
            kept: the name of the hidden states.
            index: of the sequence.
            end: the input that is enough to reach; None for the end of the block.
            moves: whether what the block makes is the next hidden state; it then runs to its end.
        """
        if moves:
            return self._move(block_name, block, kept, index)
        if end is None:
            return self._whole(block_name, block, kept, index)
        inputs = self._arguments.of(block_name, (kept, index), keeps=True)
        run_to_input(self._adapter, block, end, self._read(block_name, kept, index), inputs)
        return None

    def _whole(self, block_name: str, block: nn.Module, kept: str, index: int) -> Tensor:
        """Return what a block makes of a sequence; its hidden states stay where they are."""
        inputs = self._arguments.of(block_name, (kept, index), keeps=True)
        return run_block(block, self._read(block_name, kept, index), inputs)

    def _move(self, block_name: str, block: nn.Module, kept: str, index: int) -> Tensor:
        """Take the hidden states of a sequence, kept under a name, through a block."""
        inputs = self._arguments.of(block_name, (kept, index))
        output = call_block(block, self._read(block_name, kept, index), inputs)
        hidden = first_output(output)
        self._hidden.write(kept, index, hidden)
        self._arguments.hand_over((kept, index), output)
        return hidden

    def _read(self, block_name: str, kept: str, index: int) -> Tensor:
        state = self._hidden.read(kept, index)
        return state.to(self._device(block_name), non_blocking=state.is_pinned())

    def _device(self, block_name: str) -> torch.device:
        return self._devices.get(block_name, CPU)


def _float(language: str) -> str:
    """Return under which name the float model's hidden states of a language are kept."""
    return f"{language}.float"
