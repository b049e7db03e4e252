"""Rows of linears that one rank has solved, and how all ranks get them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.ranks import Ranks

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Change:
    """What solving changes of rows of a linear, made when asked for: it is as large as the weight.

    Attributes:
        weight: before.
        result: after.
        scales: what the channels of its input were divided by, or None.
    """

    weight: Tensor
    result: QuantizedLinear
    scales: Tensor | None

    def __call__(self) -> Tensor:
        """Return D, float32 [rows, in], for inputs without scales."""
        change = self.weight.float() - self.result.dequantize()
        return change if self.scales is None else change.div_(self.scales)


@dataclass(frozen=True)
class Piece(Generic[Key]):
    """Consecutive rows of a linear, solved.

    Attributes:
        layer: the linear's name in the model.
        first: the first of the rows.
        result: codes and grids of the rows.
        loss: tr(D G Dᵀ) per token of the mixture; None without calibration, or where no token
            came.
        losses: whose text → tr(D G Dᵀ) per token.
        divergence: language → what it costs the model, of a whole linear where that is known.
    """

    layer: str
    first: int
    result: QuantizedLinear
    loss: float | None
    losses: dict[Key, float]
    divergence: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Told(Generic[Key]):
    """What other ranks need to know of a piece before its tensors come."""

    layer: str
    first: int
    rows: int
    columns: int
    groups: int
    spec: GridSpec
    known: float | None  # the result's own loss
    damp: float
    dead_channels: int
    correction: float
    loss: float | None
    losses: dict[Key, float]
    divergence: dict[str, float]


def shared(
    pieces: Sequence[Piece[Key]], ranks: Ranks, device: torch.device
) -> dict[str, list[Piece[Key]]]:
    """Return the pieces of all ranks: linear → its pieces, in the order of rows; collective.

    Args:
        pieces: of this rank.
        ranks: the processes of the run.
        device: where their tensors are to be.
    """
    found: dict[str, list[Piece[Key]]] = {}
    for owner, told in enumerate(ranks.gathered([_told(piece) for piece in pieces])):
        there = pieces if owner == ranks.rank else [_empty(each, device) for each in told]
        results = [piece.result for piece in there]
        ranks.broadcast(
            owner, [t for each in results for t in (each.codes, each.grid.scale, each.grid.zero)]
        )
        for piece in there:
            found.setdefault(piece.layer, []).append(piece)
    return {layer: sorted(each, key=lambda piece: piece.first) for layer, each in found.items()}


def joined(pieces: Sequence[Piece[Key]]) -> QuantizedLinear:
    """Return a whole linear of its pieces."""
    results = [piece.result for piece in pieces]
    first = results[0]
    if len(results) == 1:
        return first
    known = [each.loss for each in results if each.loss is not None]
    grid = Grid(
        torch.cat([each.grid.scale for each in results]),
        torch.cat([each.grid.zero for each in results]),
        first.grid.spec,
    )
    return QuantizedLinear(
        torch.cat([each.codes for each in results]),
        grid,
        loss=sum(known) if len(known) == len(results) else None,
        damp=first.damp,
        dead_channels=first.dead_channels,
        correction=first.correction,
    )


def added(losses: Iterable[Mapping[Key, float]]) -> dict[Key, float]:
    """Return the losses of all pieces of a linear: those of rows add up."""
    sums: dict[Key, float] = {}
    for each in losses:
        for key, loss in each.items():
            sums[key] = sums.get(key, 0.0) + loss
    return sums


def _told(piece: Piece[Key]) -> _Told[Key]:
    result = piece.result
    rows, columns = result.codes.shape
    return _Told(
        piece.layer,
        piece.first,
        rows,
        columns,
        result.grid.scale.shape[1],
        result.grid.spec,
        result.loss,
        result.damp,
        result.dead_channels,
        result.correction,
        piece.loss,
        piece.losses,
        piece.divergence,
    )


def _empty(told: _Told[Key], device: torch.device) -> Piece[Key]:
    """Return a piece of another rank, whose tensors are still to come."""
    grids = (told.rows, told.groups)
    scale = torch.empty(grids, device=device)
    kind = torch.float32 if told.spec.has_minima else torch.uint8
    zero = torch.empty(grids, dtype=kind, device=device)
    codes = torch.empty((told.rows, told.columns), dtype=torch.uint8, device=device)
    result = QuantizedLinear(
        codes,
        Grid(scale, zero, told.spec),
        loss=told.known,
        damp=told.damp,
        dead_channels=told.dead_channels,
        correction=told.correction,
    )
    return Piece(told.layer, told.first, result, told.loss, told.losses, told.divergence)
