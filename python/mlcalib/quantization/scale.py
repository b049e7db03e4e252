"""Scale the channels of a block before its linears are solved."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from mlcalib.common.errors import named
from mlcalib.common.ranks import Ranks, balanced
from mlcalib.models import Adapter, ScaleGroup
from mlcalib.models.folding import fold, source_channels
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.probe import Probe
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import ChannelScales, ScaledInput
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
    ranks: Ranks | None = None,
) -> ScaledBlock:
    """Let the quantizer choose scales for each scale group, and fold them in; collective.

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
            and outputs becomes that of the scaled ones.
        ranks: the processes of the run, which share the groups.
    """
    ranks = Ranks() if ranks is None else ranks
    felt = {} if fisher is None else fisher.inputs
    result = ScaledBlock()
    for searches in _rounds(_searches(adapter, block_name, block, mixed, skipped, probe)):
        found = _found(adapter, block, mixed, felt, quantizer, searches, ranks)
        for search, scales in zip(searches, found, strict=True):
            _take(adapter, block, search, scales, result)
            for name in search.group.inputs:
                result.scales[name] = scales.values
                for statistics in (mixed, felt):
                    if name in statistics:
                        statistics[name].rescale(1 / scales.values)
    if fisher is not None:
        for name, divided in result.made.items():
            if name in fisher.outputs:  # outputs are divided, so gradients at them are multiplied
                fisher.outputs[name].rescale(divided)
    return result


@dataclass(frozen=True)
class _Search:
    """What scales are searched for.

    Attributes:
        group: the scale group.
        source: its source, by the name in the model.
        read: input → linears that are quantized.
        probe: what the error of the module that they are part of is measured with, or None.
    """

    group: ScaleGroup
    source: str
    read: Mapping[str, Sequence[str]]
    probe: Probe | None

    @property
    def names(self) -> list[str]:
        """The linears of all inputs."""
        return [each for members in self.read.values() for each in members]


def _searches(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    mixed: Mapping[str, StatisticSet],
    skipped: Container[str],
    probe: Probe | None,
) -> Iterator[_Search]:
    linears = adapter.linears_of(block)
    for group in adapter.scale_groups_of(block):
        read = {
            name: [each for each in linears[name] if f"{block_name}.{each}" not in skipped]
            for name in group.inputs
            if name in mixed and mixed[name].tokens
        }
        if not any(read.values()):  # nothing of it is quantized, or no token ever reached it
            continue
        # After a linear the authors judge the one linear that reads it: its Gram says as much.
        alone = isinstance(adapter.module(block, group.source), nn.Linear)
        yield _Search(group, f"{block_name}.{group.source}", read, None if alone else probe)


def _rounds(searches: Iterable[_Search]) -> Iterator[list[_Search]]:
    """Put together searches that do not wait for each other.

    A search waits for those before it whose scales change a linear that it looks at, and where it
    runs the block for all of them.
    """
    together: list[_Search] = []
    for search in searches:
        changed = {each.group.source for each in together}
        if together and (search.probe or together[-1].probe or changed & set(search.names)):
            yield together
            together = []
        together.append(search)
    if together:
        yield together


def _found(
    adapter: Adapter,
    block: nn.Module,
    mixed: Mapping[str, StatisticSet],
    felt: Mapping[str, StatisticSet],
    quantizer: Quantizer,
    searches: Sequence[_Search],
    ranks: Ranks,
) -> list[ChannelScales]:
    """Return the scales of searches, each of which one rank makes, or with a probe every rank."""
    if ranks.alone or searches[0].probe is not None:
        return [_search(adapter, block, mixed, felt, quantizer, each) for each in searches]
    costs = [
        sum(adapter.linear(block, name).weight.numel() for name in each.names) for each in searches
    ]
    owners = balanced(costs, ranks.size)
    own = {
        index: _search(adapter, block, mixed, felt, quantizer, searches[index])
        for index, owner in enumerate(owners)
        if owner == ranks.rank
    }
    device = next(block.parameters()).device
    told = ranks.gathered({index: (each.values.cpu(), each.summary) for index, each in own.items()})
    return [
        ChannelScales(told[owner][index][0].to(device), told[owner][index][1])
        for index, owner in enumerate(owners)
    ]


def _search(
    adapter: Adapter,
    block: nn.Module,
    mixed: Mapping[str, StatisticSet],
    felt: Mapping[str, StatisticSet],
    quantizer: Quantizer,
    search: _Search,
) -> ChannelScales:
    inputs = [
        ScaledInput(
            [adapter.linear(block, each).weight.detach() for each in members],
            mixed[name],
            felt.get(name),
        )
        for name, members in search.read.items()
    ]
    loss_of = None
    if search.probe is not None:
        module = _common_module([*search.names, *search.group.readers])
        measure = search.probe.output_loss(block, module)
        loss_of = partial(_loss, measure, adapter, block, search.names)
    with named(f"scales after {search.source}"):
        return quantizer.prepare(inputs, source_channels(adapter, block, search.group), loss_of)


def _take(
    adapter: Adapter, block: nn.Module, search: _Search, scales: ChannelScales, result: ScaledBlock
) -> None:
    """Fold scales into a block, and note what that changed."""
    group = search.group
    with named(f"scales after {search.source}"):
        made = fold(adapter, block, group, scales.values)
    if isinstance(adapter.module(block, group.source), nn.Linear):
        result.made[group.source] = made * result.made.get(group.source, 1.0)
    rows = "" if group.rows is None else f" ({group.rows})"
    result.found[search.source + rows] = dict(scales.summary)


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
