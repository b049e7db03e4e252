"""Move scales of channels from where they are read to where they are made; the block is the same.

y = W x = (W · s)(x / s): a norm or a linear makes x / s, the linears that read it hold W · s.
"""

import torch
from torch import Tensor, nn

from mlcalib.models.base import Adapter, ScaleGroup


def source_channels(adapter: Adapter, block: nn.Module, group: ScaleGroup) -> Tensor | None:
    """Return, for each input channel of the group's linears, the source's output channel.

    Under grouped-query attention several heads, and so several channels of o_proj's input, read one
    channel of v_proj; these must have one scale. Of a source that makes other tensors, too, the
    channels of the group's rows are counted, from 0.

    Args:
        adapter: the model's family.
        block: a block of the model.
        group: one of the block's.

    Returns:
        int64 [in], or None where it is one to one.

    Raises:
        NotImplementedError: a module is missing, or the shapes do not fit.
    """
    weight = _weight(adapter, block, group.source)
    rows = group.rows
    if rows is not None and int(rows.index()[-1]) >= weight.shape[0]:
        raise NotImplementedError(f"'{group.source}' of {type(block).__name__} has no {rows}.")
    made = int(weight.shape[0]) if rows is None else rows.made
    read = _channels_read(adapter, block, group)
    if made == read:
        return None
    attention = adapter.module(block, group.source.rpartition(".")[0])
    head = getattr(attention, "head_dim", 0) if rows is None else rows.size
    if not head or read % made or made % head:
        raise NotImplementedError(
            f"'{group.source}' of {type(block).__name__} makes {made} channels and "
            f"{', '.join(group.inputs)} reads {read}; expected as many, or heads that share values."
        )
    heads = torch.arange(read // head) // (read // made)  # as repeat_kv of transformers
    return (heads[:, None] * head + torch.arange(head)).flatten().to(weight.device)


def fold(adapter: Adapter, block: nn.Module, group: ScaleGroup, scales: Tensor) -> Tensor:
    """Divide the source's output channels by the scales, multiply what reads them.

    In float32, then cast to each parameter's dtype. Modules get new parameters: the old ones, which
    another model may share, keep their values.

    Args:
        adapter: the model's family.
        block: a block of the model; its modules get new parameters.
        group: one of the block's.
        scales: float32 [in], of the input channels of the group's linears; positive, and equal
            where channels share one of the source's (see ``source_channels``).

    Returns:
        What each output channel of the source was divided by, float32.

    Raises:
        ValueError: scales of another shape or dtype, not positive and finite, or not equal where
            they must be.
        NotImplementedError: see ``source_channels``.
    """
    _check(scales, _channels_read(adapter, block, group))
    source = adapter.module(block, group.source)
    weight = _weight(adapter, block, group.source).float()
    made = _per_source_channel(scales, source_channels(adapter, block, group), group)
    if group.rows is not None:
        index = group.rows.index().to(made.device)
        made = torch.ones(len(weight), device=made.device).index_copy_(0, index, made)
    if weight.dim() == 1:  # a norm
        weight = (group.offset + weight) / made - group.offset
    else:
        weight = weight / made[:, None]
    _replace(source, "weight", weight)
    if isinstance(bias := getattr(source, "bias", None), Tensor):
        _replace(source, "bias", bias.detach().float() / made)
    for name in (*_linears(adapter, block, group), *group.readers):
        reader = adapter.module(block, name)
        _replace(reader, "weight", _weight(adapter, block, name).float() * scales)
    return made


def _linears(adapter: Adapter, block: nn.Module, group: ScaleGroup) -> list[str]:
    linears = adapter.linears_of(block)
    return [name for key in group.inputs for name in linears[key]]


def _weight(adapter: Adapter, block: nn.Module, name: str) -> Tensor:
    weight = adapter.module(block, name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _channels_read(adapter: Adapter, block: nn.Module, group: ScaleGroup) -> int:
    return adapter.linear(block, _linears(adapter, block, group)[0]).in_features


def _check(scales: Tensor, channels: int) -> None:
    if scales.dtype != torch.float32 or scales.shape != (channels,):
        raise ValueError(
            f"scales are {scales.dtype} {list(scales.shape)}, expected torch.float32 [{channels}]."
        )
    if not (scales.isfinite() & (scales > 0)).all():
        bad = int((~(scales.isfinite() & (scales > 0))).sum())
        raise ValueError(f"{bad} of {channels} scales are not positive and finite.")


def _per_source_channel(scales: Tensor, channels: Tensor | None, group: ScaleGroup) -> Tensor:
    if channels is None:
        return scales
    made = torch.empty(int(channels.max()) + 1, device=scales.device)
    made[channels] = scales
    if not torch.equal(made[channels], scales):
        raise ValueError(
            f"scales of channels that share one channel of '{group.source}' differ; make them "
            "equal (see source_channels)."
        )
    return made


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value.to(old.dtype), requires_grad=False))
