"""Quantizes each block of a pass one way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from mlcalib._core import QuantizedLinear
from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantization.block_record import block_record
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.gathering import LaterInput
from mlcalib.quantization.input_bounds import Bound, input_bounds
from mlcalib.quantization.job import BlockView, Outcome, Text
from mlcalib.quantization.prefixes import BlockStatistics, Mixture
from mlcalib.quantization.probe import Probe
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.sink import Sink
from mlcalib.quantization.solve import References, SolvedBlock, mix_block, solve_block
from mlcalib.quantization.source import copied
from mlcalib.quantization.stream_writer import Behind
from mlcalib.quantization.variant import Variant, VariantBlock
from mlcalib.quantization.worst_off import weighed
from mlcalib.quantizers.base import Labels
from mlcalib.statistics import StatisticSet, compares


@dataclass
class QuantizationJob:
    """Quantizes each block one way; see ``Job``.

    Attributes:
        variant: what solves, and on what.
        sink: keeps the finished blocks.
        stopwatch: time spent on it alone.
        ranks: the processes of the run, each of which has this job.
        loss: of the last block, per token.
        lent: what was made of weights that blocks share (``Adapter.places``), by the linear's name
            at the first of their places.
    """

    variant: Variant
    sink: Sink
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    ranks: Ranks = field(default_factory=Ranks)
    loss: float = 0.0
    lent: dict[str, QuantizedLinear] = field(default_factory=dict)
    _costs: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    @property
    def worst_off(self) -> bool:
        """See ``Job``."""
        return self.variant.worst_off

    @property
    def divisible(self) -> bool:
        """See ``Job``."""
        return self.variant.divisible

    @property
    def looks_at_all(self) -> bool:
        """See ``Job``."""
        return self.variant.looks_at_all

    @property
    def kv_cache(self) -> bool:
        """See ``Job``."""
        return self.variant.kv_cache

    @property
    def kinds(self) -> tuple[str, ...]:
        """See ``Job``."""
        return self.variant.kinds

    @property
    def skipped(self) -> set[str]:
        """See ``Job``."""
        return self.variant.skipped

    @property
    def mixture(self) -> Mixture:
        """See ``Job``."""
        return self.variant.mixture

    @property
    def fisher_tokens(self) -> int:
        """See ``Job``."""
        return self.variant.fisher_tokens

    @property
    def halves(self) -> bool:
        """See ``Job``."""
        return self.variant.halves

    @property
    def fisher_labels(self) -> Labels:
        """See ``Job``."""
        return self.variant.fisher_labels

    def has(self, block_name: str) -> bool:
        """See ``Job``."""
        return self.sink.has(block_name)

    def probe(self, flow: Flow | None, block_name: str) -> Probe | None:
        """See ``Job``."""
        return self.variant.probe(flow, block_name)

    def run(self, block: BlockView, probe: Probe | None) -> Outcome:
        """See ``Job``."""
        lost = self._lost(block.earlier) if self.worst_off else {}
        first = self.worst_off and not block.earlier  # nothing has told the languages apart so far
        own, solved = self._solve(block, probe, lost, trial=first)
        if first:
            own, solved = self._solve(block, probe, _by_language(solved.divergence))
        self.loss = solved.loss
        firsts = set(block.adapter.places.values())
        self.lent |= {name: each for name, each in solved.linears.items() if name in firsts}
        mixture = self.variant.mixture
        own_text: BlockStatistics = {
            input_name: {prefix: by_prefix[prefix] for prefix in mixture}
            for input_name, by_prefix in block.statistics.items()
            if mixture
        }
        keep = partial(self._keep, block, own, solved, own_text)
        return Outcome(own, partial(self._measure, solved), keep)

    def _solve(
        self,
        block: BlockView,
        probe: Probe | None,
        lost: Mapping[str, float],
        *,
        trial: bool = False,
    ) -> tuple[nn.Module, VariantBlock[Text]]:
        """Return the block quantized, and what became of it; ``lost`` decides the weights.

        After a ``trial`` it is solved again.
        """
        own, mixture = copied(block.module), weighed(self.mixture, lost)
        lent = self._lend(block.adapter, block.name, own)
        fisher = BlockFisher.mixed(block.texts, mixture) if lost else block.fisher
        if block.languages:
            fisher = replace(fisher or BlockFisher(), languages=block.languages)
        variant = replace(self.variant, mixture=mixture)
        inputs = block.adapter.linears_of(own).keys() - {each.name for each in block.later}
        solved = variant.solve(
            block.adapter,
            block.name,
            own,
            self._mixed(block, mixture),
            block.measured,
            probe,
            self.stopwatch,
            fisher=fisher,
            measured_later=block.in_turns,
            ranks=self.ranks,
            owners=block.owners,
            inputs=inputs,
        )
        for each in block.later:
            self._solve_later(each, block, own, variant, fisher, solved, trial=trial)
        solved.linears |= lent
        solved.losses |= {name: {} for name in lent}
        return own, solved

    def _solve_later(
        self,
        read: LaterInput,
        block: BlockView,
        own: nn.Module,
        variant: Variant,
        fisher: BlockFisher | None,
        solved: VariantBlock[Text],
        *,
        trial: bool,
    ) -> None:
        """Solve the linears of an input on what they read behind those that are solved.

        Where the input was gathered before, losses are still measured on what it read there.
        """
        name, behind = read.name, Behind(own, solved.scaled.scales)
        found = read.gather(behind, trial=trial)
        known = name in block.statistics
        if not (known or trial):
            block.statistics |= found.statistics
            block.measured |= found.measured
        (mixed,) = found.mixed
        mixed = mixed or self._mixed_of(found.statistics, variant.mixture)
        if name not in mixed:  # all its linears stay in floating point
            return
        for each in found.statistics[name].values():  # only the mixture is solved with
            each.half = None
            each.drop([kind for kind in each.kinds if compares([kind])])
        part = solve_block(
            block.adapter,
            block.name,
            own,
            {name: mixed[name]},
            block.measured if known else found.measured,
            variant.quantizer,
            variant.exceptions,
            self.stopwatch,
            solved.scaled,
            fisher=fisher,
            measured_later=found.in_turns,
            ranks=self.ranks,
            inputs=[name],
        )
        if found.in_turns and not known:
            for measured in read.again(behind):
                self._measure(part, measured)
            part.changes.clear()
        solved.add(part)

    def _lend(
        self, adapter: Adapter, block_name: str, block: nn.Module
    ) -> dict[str, QuantizedLinear]:
        """Give linears that an earlier block has, too, the weights that were solved there."""
        found = {}
        for member in (each for members in adapter.linears_of(block).values() for each in members):
            name = f"{block_name}.{member}"
            solved = self.lent.get(adapter.places.get(name, ""))
            if solved is not None:
                linear = adapter.linear(block, member)
                weight = solved.dequantize().to(linear.weight)
                linear.weight = nn.Parameter(weight, requires_grad=False)
                found[name] = solved
        return found

    def _lost(self, blocks: Iterable[str]) -> dict[str, float]:
        """Return language → what finished blocks cost it, in nats per token; collective."""
        for name in blocks:
            if name not in self._costs:
                record = self.sink.record(name) if self.ranks.writes else {"layers": {}}
                costs = {key: each.get("divergence", {}) for key, each in record["layers"].items()}
                self._costs[name] = _by_language(self.ranks.of_first(costs))
        return _by_language(self._costs)

    def _measure(self, solved: SolvedBlock[Text], measured: References[Text]) -> None:
        with self.stopwatch.timed("losses"):
            solved.measure(measured)

    def _keep(
        self,
        block: BlockView,
        own: nn.Module,
        solved: VariantBlock[Text],
        own_text: BlockStatistics,
    ) -> None:
        adapter, name = block.adapter, block.name
        variant = self.variant
        bounds: dict[str, Bound] = {}
        if variant.static_inputs:
            clip = variant.activation_clip
            texts, divided = block.statistics, solved.scaled.scales
            bounds = input_bounds(adapter, name, own, texts, variant.mixture, divided, clip)
            solved.linears |= {
                layer: solved.linears[layer].replaced(input_bound=bound.largest)
                for layer, bound in bounds.items()
                if layer in solved.linears
            }
        with self.stopwatch.timed("write"):
            record = block_record(block, own, own_text, solved, variant, bounds, self.ranks)
            self.sink.keep(name, own, solved.linears, record)

    def _mixed(self, block: BlockView, mixture: Mixture) -> dict[str, StatisticSet]:
        known = block.mixed or {}
        others = {name: each for name, each in block.statistics.items() if name not in known}
        return self._mixed_of(others, mixture) | known

    def _mixed_of(self, statistics: BlockStatistics, mixture: Mixture) -> dict[str, StatisticSet]:
        with self.stopwatch.timed("mix"):
            return mix_block(statistics, mixture) if mixture else {}

    def restore(self, block_name: str, block: nn.Module) -> None:
        """See ``Job``."""
        self.sink.restore(block_name, block)

    def note(self) -> str:
        """See ``Job``."""
        return f"loss/token {self.loss:.3g}"


def _by_language(costs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Add up layer → language → cost over the layers."""
    found: dict[str, float] = {}
    for by_language in costs.values():
        for language, cost in by_language.items():
            found[language] = found.get(language, 0.0) + cost
    return found
