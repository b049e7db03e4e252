"""What a pass does with each block, beside moving the text through it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from torch import nn

from mlcalib.models import Adapter
from mlcalib.quantization.cache_ranges import CacheRanges
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.prefixes import BlockStatistics, Mixture, Prefix
from mlcalib.quantization.probe import Probe
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.solve import References
from mlcalib.quantizers.base import Labels
from mlcalib.statistics import StatisticSet

if TYPE_CHECKING:
    from mlcalib.quantization.gathering import LaterInput

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
        mixed: input → the mixture of this job, of inputs that are mixed already; see ``Gathered``.
        fisher: what the loss feels of the block on this job's mixture, where ``fisher_tokens`` asks
            for it.
        texts: text of that mixture → what the loss feels on the text by itself, if it is kept.
        languages: the same for the longest text of each language that any job asks for.
        earlier: the blocks before.
        owners: input of an expert → the rank that alone has its Grams; empty where all have them.
        diagonal: whether of experts each language has a diagonal, and the mixture alone a Gram.
        in_turns: whether the Grams of the calibration text are not in ``measured``, because all at
            once would not fit into memory, but given to ``Outcome.measure``.
        later: inputs that are gathered when what comes before them is solved, in their order.
        cache: keys and values, where a job asks for them.
    """

    adapter: Adapter
    name: str
    module: nn.Module
    statistics: BlockStatistics
    measured: References[Text]
    mixed: dict[str, StatisticSet] | None = None
    fisher: BlockFisher | None = None
    texts: Mapping[Prefix, BlockFisher] = field(default_factory=dict)
    languages: Mapping[Prefix, BlockFisher] = field(default_factory=dict)
    earlier: Sequence[str] = ()
    in_turns: bool = False
    owners: Mapping[str, int] = field(default_factory=dict)
    diagonal: bool = False
    later: "Sequence[LaterInput]" = ()
    cache: CacheRanges | None = None


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
    def halves(self) -> bool:
        """Whether statistics of the first half of each text are kept beside those of all of it."""

    @property
    def fisher_labels(self) -> Labels:
        """Whose loss these are the gradients of."""

    @property
    def worst_off(self) -> bool:
        """Whether the weights of languages follow what the loss feels of each."""

    @property
    def divisible(self) -> bool:
        """Whether it can do with the Grams of some languages at a time."""

    @property
    def looks_at_all(self) -> bool:
        """Whether it looks at the Grams of all experts of a block at once."""

    @property
    def kv_cache(self) -> bool:
        """Whether it looks at keys and values."""


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


class Observation:
    """A job that looks at blocks and leaves them as they are; see ``Job``."""

    kinds: tuple[str, ...] = ()
    """See ``Job``."""

    fisher_tokens = 0
    """See ``Job``: none."""

    fisher_labels: Labels = "model"
    """See ``Job``: of none."""

    halves = False
    """See ``Job``."""

    worst_off = False
    """See ``Job``: there are no weights."""

    divisible = False
    """See ``Job``; where it is, ``measure`` takes the Grams."""

    looks_at_all = True
    """See ``Job``."""

    kv_cache = False
    """See ``Job``."""

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
