"""One way to quantize a model: what solves, and the mixture that it is calibrated on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Generic

from torch import nn

from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantization.expert_rows import known_everywhere
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.pieces import Key
from mlcalib.quantization.prefixes import Mixture
from mlcalib.quantization.probe import Probe
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.rare_experts import shrink_experts
from mlcalib.quantization.scale import ScaledBlock, scale_block
from mlcalib.quantization.solve import References, SolvedBlock, solve_block
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import Labels
from mlcalib.statistics import StatisticSet


@dataclass
class VariantBlock(SolvedBlock[Key], Generic[Key]):
    """What became of a block.

    Attributes:
        scaled: what scaling did to it.
        shrinkage: input of an expert → the share of its tokens that all experts lent.
    """

    scaled: ScaledBlock = field(default_factory=ScaledBlock)
    shrinkage: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One way to quantize a model.

    Attributes:
        quantizer: what solves.
        exceptions: linear → what solves it instead, or None to leave it in floating point.
        mixture: prefixes of text and their weights; empty without calibration.
        static_inputs: whether the checkpoint stores the ranges of inputs.
        activation_clip: the share of each language's values that these may leave outside.
        kv_cache: whether it stores the ranges of keys and values.
    """

    quantizer: Quantizer
    exceptions: Mapping[str, Quantizer | None]
    mixture: Mixture
    static_inputs: bool = False
    activation_clip: float = 0.0
    kv_cache: bool = False

    @property
    def worst_off(self) -> bool:
        """Whether the weights of the mixture follow what the loss feels of each language."""
        return self.quantizer.worst_off and bool(self.mixture)

    @property
    def divisible(self) -> bool:
        """Statistics are mixed, and losses measured language by language; see ``Wants``.

        Weights that follow the languages are mixed again.
        """
        return not self.worst_off

    @property
    def looks_at_all(self) -> bool:
        """Whether scales are searched: experts that read one norm have theirs together."""
        return self.quantizer.scales

    @property
    def kinds(self) -> tuple[str, ...]:
        """Statistics to be kept: losses need the Gram, records ranges, the rest the quantizer."""
        counted = ("histogram",) if self.static_inputs else ()
        return tuple(dict.fromkeys(("gram", "range", *counted, *self.quantizer.kinds)))

    @property
    def skipped(self) -> set[str]:
        """Linears that stay in floating point."""
        return {name for name, solver in self.exceptions.items() if solver is None}

    @property
    def fisher_tokens(self) -> int:
        """Tokens of the mixture whose gradients are wanted."""
        return self.quantizer.fisher_tokens if self.mixture else 0

    @property
    def halves(self) -> bool:
        """Whether a half of the text is wanted by itself."""
        return self.quantizer.halves and bool(self.mixture)

    @property
    def fisher_labels(self) -> Labels:
        """Whose loss these are the gradients of."""
        return self.quantizer.fisher_labels

    def probe(self, flow: Flow | None, block_name: str) -> Probe | None:
        """Return hidden states to run a block on, where the quantizer asks for them."""
        wanted = self.quantizer.probe_tokens
        if flow is None or not (wanted and self.mixture):
            return None
        return flow.probe(block_name, wanted, self.mixture)

    def solve(  # noqa: PLR0913 - what a solution is made of
        self,
        adapter: Adapter,
        block_name: str,
        block: nn.Module,
        mixed: dict[str, StatisticSet],
        measured: References[Key],
        probe: Probe | None,
        stopwatch: Stopwatch,
        *,
        fisher: BlockFisher | None = None,
        measured_later: bool = False,
        ranks: Ranks | None = None,
        owners: Mapping[str, int] = MappingProxyType({}),
        inputs: Collection[str] | None = None,
    ) -> VariantBlock[Key]:
        """Quantize a block; its linears get the dequantized weights.

        Args:
            adapter: the model's family.
            block_name: name of the block in the model.
            block: with its own weights.
            mixed: input → the mixture of its statistics, which becomes that of scaled inputs, of
                experts shrunk; empty without calibration.
            measured: Grams that the losses are measured with.
            probe: from ``probe``.
            stopwatch: gets the times.
            fisher: what the loss feels of the block, where gradients were asked for.
            measured_later: keep what ``measure`` of the result needs.
            ranks: the processes of the run, which share the work; this is then collective.
            owners: input of an expert → the rank that alone has the Gram of its mixture; empty
                where all have them.
            inputs: those whose linears are solved; None for all.
        """
        ranks = Ranks() if ranks is None else ranks
        scaled, shrinkage = ScaledBlock(), {}
        if mixed and "gram" in self.quantizer.kinds:
            with stopwatch.timed("mix"):
                shrinkage = shrink_experts(adapter, block, mixed, self.mixture, owners, ranks)
        if mixed and self.looks_at_all and not ranks.alone:
            with stopwatch.timed("share"):
                device = next(block.parameters()).device
                mixed |= known_everywhere(mixed, owners, ranks, device)
        if mixed and self.quantizer.scales:
            with stopwatch.timed("scale"):
                scaled = scale_block(
                    adapter,
                    block_name,
                    block,
                    mixed,
                    self.quantizer,
                    self.skipped,
                    probe,
                    fisher,
                    ranks,
                )
        solved = solve_block(
            adapter,
            block_name,
            block,
            mixed,
            measured,
            self.quantizer,
            self.exceptions,
            stopwatch,
            scaled,
            fisher=fisher,
            measured_later=measured_later,
            ranks=ranks,
            owners=owners,
            inputs=inputs,
        )
        known = {each.name: getattr(solved, each.name) for each in fields(solved)}
        return VariantBlock(**known, scaled=scaled, shrinkage=shrinkage)
