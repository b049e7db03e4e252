"""What a pass does with each block, beside moving the text through it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import nn

from mlcalib.checkpoints.record import layer_record
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.probe import Probe
from mlcalib.quantization.propagation import BlockStatistics, Flow, Mixture
from mlcalib.quantization.sink import Sink
from mlcalib.quantization.solve import References, expert_tokens, input_ranges, mix_block
from mlcalib.quantization.source import copied
from mlcalib.quantization.variant import Variant, VariantBlock
from mlcalib.statistics import StatisticSet

Text = tuple[str, str]
"""Whose text a loss is measured on: kind (``calibration``, ``heldout``) and language."""


@dataclass
class BlockView:
    """A block as a job meets it.

    Attributes:
        adapter: the model's family.
        name: of the block in the model.
        module: with its own weights, which other jobs see too: to be copied before it is changed.
        statistics: of its inputs; where languages take turns, only those that are small.
        measured: Grams to measure losses with.
        mixed: input → the mixture of this job, where languages take turns; else None.
        fisher: what the loss feels of the block on this job's mixture, where ``fisher_tokens`` asks
            for it.
        in_turns: whether the Grams of the calibration text are not in ``measured``, because all at
            once would not fit into memory, but given to ``Outcome.measure``.
    """

    adapter: Adapter
    name: str
    module: nn.Module
    statistics: BlockStatistics
    measured: References[Text]
    mixed: dict[str, StatisticSet] | None = None
    fisher: BlockFisher | None = None
    in_turns: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a job made of a block.

    Attributes:
        block: what the text goes on through in a quantized model.
        measure: takes the Grams of some languages; called for each group where they take turns.
        keep: keeps it all; called when everything is measured.
    """

    block: nn.Module
    measure: Callable[[References[Text]], None]
    keep: Callable[[], None]


class Wants(Protocol):
    """What is wanted of the calibration text."""

    @property
    def kinds(self) -> Iterable[str]:
        """Statistics to be kept of each input."""

    @property
    def mixture(self) -> Mixture | None:
        """What is mixed; None where the statistics of each language are looked at."""

    @property
    def fisher_tokens(self) -> int:
        """Tokens of the mixture whose gradients are wanted; 0 for none."""

    @property
    def divisible(self) -> bool:
        """Whether it can do with the Grams of some languages at a time."""


class Job(Wants, Protocol):
    """What a pass does with each block."""

    @property
    def skipped(self) -> set[str]:
        """Linears (names in the model) of which it needs no statistics."""

    def has(self, block_name: str) -> bool:
        """Return whether a block is done."""

    def probe(self, flow: Flow | None, block_name: str) -> Probe | None:
        """Return hidden states to run the block on, before they move on; None for none."""

    def run(self, block: BlockView, probe: Probe | None) -> Outcome:
        """Do it; the block is done once the outcome is kept."""

    def restore(self, block_name: str, block: nn.Module) -> None:
        """Give a block that is done the parameters that its outcome had."""

    def note(self) -> str:
        """Return what a progress bar tells of the last block."""


@dataclass
class QuantizationJob:
    """Quantizes each block one way; see ``Job``.

    Attributes:
        variant: what solves, and on what.
        sink: keeps the finished blocks.
        stopwatch: time spent on it alone.
        loss: of the last block, per token.
    """

    variant: Variant
    sink: Sink
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    loss: float = 0.0

    @property
    def divisible(self) -> bool:
        """See ``Job``."""
        return self.variant.divisible

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

    def has(self, block_name: str) -> bool:
        """See ``Job``."""
        return self.sink.has(block_name)

    def probe(self, flow: Flow | None, block_name: str) -> Probe | None:
        """See ``Job``."""
        return self.variant.probe(flow, block_name)

    def run(self, block: BlockView, probe: Probe | None) -> Outcome:
        """See ``Job``."""
        own = copied(block.module)
        solved = self.variant.solve(
            block.adapter,
            block.name,
            own,
            self._mixed(block),
            block.measured,
            probe,
            self.stopwatch,
            fisher=block.fisher,
            measured_later=block.in_turns,
        )
        self.loss = solved.loss
        mixture = self.variant.mixture
        own_text: BlockStatistics = {
            input_name: {prefix: by_prefix[prefix] for prefix in mixture}
            for input_name, by_prefix in block.statistics.items()
            if mixture
        }
        keep = partial(self._keep, block.adapter, block.name, own, solved, own_text)
        return Outcome(own, partial(self._measure, solved), keep)

    def _measure(self, solved: VariantBlock[Text], measured: References[Text]) -> None:
        with self.stopwatch.timed("losses"):
            solved.measure(measured)

    def _keep(
        self,
        adapter: Adapter,
        name: str,
        own: nn.Module,
        solved: VariantBlock[Text],
        own_text: BlockStatistics,
    ) -> None:
        with self.stopwatch.timed("write"):
            record = {
                **_losses(solved),
                "layers": self._layers(
                    solved,
                    input_ranges(adapter, name, own, own_text),
                    _shrinkage(adapter, name, own, solved.shrinkage),
                ),
                "scales": solved.scales,
                "expert_tokens": expert_tokens(adapter, name, own, own_text),
            }
            self.sink.keep(name, own, solved.linears, record)

    def _mixed(self, block: BlockView) -> dict[str, StatisticSet]:
        if block.mixed is not None:
            return block.mixed
        with self.stopwatch.timed("mix"):
            return mix_block(block.statistics, self.mixture) if self.mixture else {}

    def restore(self, block_name: str, block: nn.Module) -> None:
        """See ``Job``."""
        self.sink.restore(block_name, block)

    def note(self) -> str:
        """See ``Job``."""
        return f"loss/token {self.loss:.3g}"

    def _layers(
        self,
        solved: VariantBlock[Text],
        ranges: Mapping[str, Mapping[str, tuple[float, float]]],
        shrinkage: Mapping[str, float],
    ) -> dict[str, Any]:
        languages = {prefix.language for prefix in self.variant.mixture}
        return {
            layer: layer_record(
                linear,
                {
                    language: loss
                    for (kind, language), loss in solved.losses[layer].items()
                    if kind == "calibration" and language in languages
                },
                ranges.get(layer, {}),
                shrinkage.get(layer),
            )
            for layer, linear in solved.linears.items()
        }


class Observation:
    """A job that looks at blocks and leaves them as they are; see ``Job``."""

    kinds: tuple[str, ...] = ()
    """See ``Job``."""

    fisher_tokens = 0
    """See ``Job``: none."""

    divisible = False
    """See ``Job``; where it is, ``measure`` takes the Grams."""

    def __init__(self) -> None:
        """Start with the first block."""
        self._done: set[str] = set()

    @property
    def skipped(self) -> set[str]:
        """See ``Job``: none."""
        return set()

    @property
    def mixture(self) -> None:
        """See ``Job``: none."""

    def has(self, block_name: str) -> bool:
        """See ``Job``."""
        return block_name in self._done

    def probe(self, flow: Flow | None, block_name: str) -> Probe | None:
        """See ``Job``: none."""
        return None

    def run(self, block: BlockView, probe: Probe | None) -> Outcome:
        """See ``Job``."""
        self.see(block)
        return Outcome(
            block.module, partial(self.measure, block), partial(self._done.add, block.name)
        )

    def see(self, block: BlockView) -> None:
        """Take from a block's statistics what is wanted."""
        raise NotImplementedError

    def measure(self, block: BlockView, measured: References[Text]) -> None:
        """Take the Grams of some languages; see ``Outcome``."""
        raise NotImplementedError

    def restore(self, block_name: str, block: nn.Module) -> None:
        """See ``Job``: nothing was changed."""

    def note(self) -> str:
        """See ``Job``: nothing."""
        return ""


def _shrinkage(
    adapter: Adapter, block_name: str, block: nn.Module, shares: Mapping[str, float]
) -> dict[str, float]:
    """Return linear (name in the model) → the share of its input's tokens that was lent."""
    linears = adapter.linears_of(block)
    return {
        f"{block_name}.{member}": share
        for name, share in shares.items()
        for member in linears[name]
    }


def _losses(solved: VariantBlock[Text]) -> dict[str, dict[str, dict[str, float]]]:
    """Return kind of text → linear → language → loss per token."""
    found: dict[str, dict[str, dict[str, float]]] = {"calibration": {}, "heldout": {}}
    for layer, losses in solved.losses.items():
        for (kind, language), loss in losses.items():
            found[kind].setdefault(layer, {})[language] = loss
    return found
