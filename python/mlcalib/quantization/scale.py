"""Scale the channels of a block before its linears are solved."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from mlcalib.common.errors import named
from mlcalib.models import Adapter
from mlcalib.models.folding import fold, source_channels
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.probe import Probe
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import ScaledInput
from mlcalib.statistics import StatisticSet


@dataclass
class ScaledBlock:
    """What scaling did to a block.

    Attributes:
        found: source of a scale group (name in the model; where these are some of its rows, with
            them) → how its scales were found.
        scales: input → float32 [in], what its channels are divided by.
        made: linear → float32 [out], what its output channels are divided by.
    """

    found: dict[str, dict[str, float]] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)

    def unscaled(self, name: str, change: Tensor) -> Tensor:
        """Return a change of weights [out, in] as it is for an input without scales."""
        return change / self.scales[name] if name in self.scales else change

    def unscaled_output(self, member: str, change: Tensor) -> Tensor:
        """Return a change of weights [out, in] as it is for outputs without scales."""
        return change * self.made[member][:, None] if member in self.made else change


def scale_block(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    mixed: Mapping[str, StatisticSet],
    quantizer: Quantizer,
    skipped: Container[str],
    probe: Probe | None,
    fisher: BlockFisher | None = None,
) -> ScaledBlock:
    """Let the quantizer choose scales for each scale group, and fold them into the block.

    Args:
        adapter: the model's family.
        block_name: name of the block in the model.
        block: its modules get new parameters; it computes what it did.
        mixed: input → statistics; they become those of the scaled inputs.
        quantizer: what chooses.
        skipped: linears (names in the model) that stay in floating point: they are scaled, but do
            not matter to the choice.
        probe: hidden states to run the block on, where the quantizer asks for that.
        fisher: what the loss feels of the block, where the quantizer asks for that; that of inputs
            becomes that of the scaled inputs.
    """
    felt = {} if fisher is None else fisher.inputs
    result = ScaledBlock()
    linears = adapter.linears_of(block)
    for group in adapter.scale_groups_of(block):
        source = f"{block_name}.{group.source}"
        read = {
            name: [each for each in linears[name] if f"{block_name}.{each}" not in skipped]
            for name in group.inputs
            if name in mixed and mixed[name].tokens
        }
        if not any(read.values()):  # nothing of it is quantized, or no token ever reached it
            continue
        inputs = [
            ScaledInput(
                [adapter.linear(block, each).weight.detach() for each in members],
                mixed[name],
                felt.get(name),
            )
            for name, members in read.items()
        ]
        names = [each for members in read.values() for each in members]
        loss_of = None
        # After a linear the authors judge the one linear that reads it: its Gram says as much.
        if probe is not None and not isinstance(adapter.module(block, group.source), nn.Linear):
            measure = probe.output_loss(block, _common_module([*names, *group.readers]))
            loss_of = partial(_loss, measure, adapter, block, names)
        with named(f"scales after {source}"):
            scales = quantizer.prepare(inputs, source_channels(adapter, block, group), loss_of)
            made = fold(adapter, block, group, scales.values)
        if isinstance(adapter.module(block, group.source), nn.Linear):
            result.made[group.source] = made * result.made.get(group.source, 1.0)
        for name in group.inputs:
            result.scales[name] = scales.values
            for statistics in (mixed, felt):
                if name in statistics:
                    statistics[name].rescale(1 / scales.values)
        rows = "" if group.rows is None else f" ({group.rows})"
        result.found[source + rows] = dict(scales.summary)
    return result


def _common_module(names: Sequence[str]) -> str:
    """Return the innermost module that holds all of these: the attention, the MLP or the block."""
    common: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _loss(
    measure: Callable[[], float],
    adapter: Adapter,
    block: nn.Module,
    names: Sequence[str],
    weights: Sequence[Tensor],
) -> float:
    """Return what it costs the output if linears hold these weights."""
    with _replaced(adapter, block, names, weights):
        return measure()


@contextmanager
def _replaced(
    adapter: Adapter, block: nn.Module, names: Sequence[str], weights: Sequence[Tensor]
) -> Iterator[None]:
    """Give linears other weights while inside."""
    linears = [adapter.linear(block, name) for name in names]
    own = [linear.weight for linear in linears]
    for linear, weight in zip(linears, weights, strict=True):
        linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
    try:
        yield
    finally:
        for linear, weight in zip(linears, own, strict=True):
            linear.weight = weight
