"""Scale the channels of a block before its linears are solved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from mlcalib.errors import named
from mlcalib.flow import BlockStatistics, Probe
from mlcalib.models import Adapter
from mlcalib.models.base import ScaleGroup
from mlcalib.models.folding import fold, source_channels
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import ScaledInput
from mlcalib.statistics import mix


def scale_block(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    statistics: BlockStatistics,
    quantizer: Quantizer,
    probe: Probe | None,
) -> dict[str, dict[str, float]]:
    """Let the quantizer choose scales for each scale group, and fold them into the block.

    Args:
        adapter: the model's family.
        block_name: name of the block in the model.
        block: its modules get new parameters; it computes what it did.
        statistics: of its inputs; they become those of the scaled inputs.
        quantizer: what chooses.
        probe: hidden states to run the block on, where the quantizer asks for that.

    Returns:
        Source of the scale group (name in the model) → how the scales were found.
    """
    found = {}
    for group in adapter.scale_groups_of(block):
        source = f"{block_name}.{group.source}"
        inputs, names = _inputs(adapter, block, group, statistics)
        if not inputs:  # nothing of it is quantized, or no token ever reached it
            continue
        with named(f"scales behind {source}"):

            def loss_of(weights: Sequence[Tensor], names: list[str] = names) -> float:
                assert probe is not None
                with _replaced(adapter, block, names, weights):
                    return probe.loss(block)

            scales = quantizer.prepare(inputs, source_channels(adapter, block, group), loss_of)
            if scales is None:
                continue
            fold(adapter, block, group, scales.values)
            for name in group.inputs:
                for each in statistics.get(name, {}).values():
                    each.rescale(1 / scales.values)
        found[source] = dict(scales.summary)
    return found


def _inputs(
    adapter: Adapter, block: nn.Module, group: ScaleGroup, statistics: BlockStatistics
) -> tuple[list[ScaledInput], list[str]]:
    """Return what the group scales, and the names of its linears in the same order."""
    linears = adapter.linears_of(block)
    inputs, names = [], []
    for name in group.inputs:
        by_language = statistics.get(name, {})
        if sum(each.tokens for each in by_language.values()) == 0:
            continue
        weights = [adapter.linear(block, linear).weight.detach() for linear in linears[name]]
        mixed = mix(by_language, dict.fromkeys(by_language, 1.0))
        inputs.append(ScaledInput(weights, mixed))
        names += linears[name]
    return inputs, names


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
