"""Scale the channels of a block before its linears are solved."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from mlcalib.errors import named
from mlcalib.flow import BlockStatistics, Probe
from mlcalib.models import Adapter
from mlcalib.models.folding import fold, source_channels
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import ScaledInput
from mlcalib.statistics import StatisticSet, mix


def scale_block(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    statistics: BlockStatistics,
    quantizer: Quantizer,
    skipped: Container[str],
    probe: Probe | None,
) -> dict[str, dict[str, float]]:
    """Let the quantizer choose scales for each scale group, and fold them into the block.

    Args:
        adapter: the model's family.
        block_name: name of the block in the model.
        block: its modules get new parameters; it computes what it did.
        statistics: of its inputs; they become those of the scaled inputs.
        quantizer: what chooses.
        skipped: linears (names in the model) that stay in floating point: they are scaled, but do
            not matter to the choice.
        probe: hidden states to run the block on, where the quantizer asks for that.

    Returns:
        Source of the scale group (name in the model) → how the scales were found.
    """
    found = {}
    linears = adapter.linears_of(block)
    for group in adapter.scale_groups_of(block):
        source = f"{block_name}.{group.source}"
        read = {
            name: [each for each in linears[name] if f"{block_name}.{each}" not in skipped]
            for name in group.inputs
            if any(each.tokens for each in statistics.get(name, {}).values())
        }
        if not any(read.values()):  # nothing of it is quantized, or no token ever reached it
            continue
        inputs = [_input(adapter, block, read[name], statistics[name]) for name in read]
        names = [each for members in read.values() for each in members]
        loss_of = None
        # Behind a linear the authors judge the one linear that reads it: its Gram says as much.
        if probe is not None and not isinstance(adapter.module(block, group.source), nn.Linear):
            measure = probe.output_loss(block, _common_module([*names, *group.readers]))
            loss_of = partial(_loss, measure, adapter, block, names)
        with named(f"scales behind {source}"):
            scales = quantizer.prepare(inputs, source_channels(adapter, block, group), loss_of)
            fold(adapter, block, group, scales.values)
        for name in group.inputs:
            for each in statistics.get(name, {}).values():
                each.rescale(1 / scales.values)
        found[source] = dict(scales.summary)
    return found


def _input(
    adapter: Adapter, block: nn.Module, names: Sequence[str], statistics: dict[str, StatisticSet]
) -> ScaledInput:
    weights = [adapter.linear(block, name).weight.detach() for name in names]
    return ScaledInput(weights, mix(statistics, dict.fromkeys(statistics, 1.0)))


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
