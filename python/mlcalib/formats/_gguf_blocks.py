r"""Blocks of GGUF, byte by byte.

Checked against llama.cpp (``ggml/src/ggml-quants.c``; the package gguf 0.19, ``gguf/quants.py``).
Of a block of 32 input channels, with c a code, d the scale and m the minimum in float16:

=====  =================  ==========================================================================
Q4_0   d · (c - 8)        d, then 16 bytes: codes 0 to 15 in the low nibbles
Q5_0   d · (c - 16)       d, the fifth bits of all codes, then nibbles as in Q4_0
Q8_0   d · (c - 128)      d, then 32 signed bytes
Q4_1   d · c + m          d, m, then nibbles as in Q4_0
Q5_1   d · c + m          d, m, then as in Q5_0
=====  =================  ==========================================================================

Of a super-block of 256 input channels, with s and n the codes of the scale and minimum of a group:

=====  ======  =================  ================================================================
Q2_K   of 16   d·s · c - dmin·n   s and n in the nibbles of 16 bytes, codes, d, dmin
Q3_K   of 16   d·s · (c - 4)      high bits of codes, low bits, s in 6 bits of 12 bytes, d
Q4_K   of 32   d·s · c - dmin·n   d, dmin, s and n in 6 bits of 12 bytes, codes
Q5_K   of 32   d·s · c - dmin·n   d, dmin, s and n in 6 bits of 12 bytes, high bits, low bits
Q6_K   of 16   d·s · (c - 32)     low bits of codes, high bits, s in 16 signed bytes, d
=====  ======  =================  ================================================================

The scales of a grid are the products d·s, and its minima dmin·n, which float32 holds exactly. d and
s are found again from the products of a super-block; where several pairs give the same products, s
is as large as possible. In Q3_K and Q6_K s has a sign, and its largest magnitude is the negative.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.common.gguf_types import BLOCK_TYPES

GGUF_GRIDS = {
    kind: GridSpec(**each.options(), scale_dtype=torch.float16)
    for kind, each in BLOCK_TYPES.items()
}
"""Of the kinds of blocks whose codes mlcalib reads."""

# What a block has, in its order: numbers in float16, scales, and bits of codes: how many, from
# which bit on, and of how many neighbouring codes they lie in neighbouring bytes.
_Bits = tuple[int, int, int]
_NIBBLES, _FIFTH = (4, 0, 16), (1, 4, 1)
_LAYOUT: dict[str, tuple[str | _Bits, ...]] = {
    "Q4_0": ("d", _NIBBLES),
    "Q4_1": ("d", "m", _NIBBLES),
    "Q5_0": ("d", _FIFTH, _NIBBLES),
    "Q5_1": ("d", "m", _FIFTH, _NIBBLES),
    "Q8_0": ("d", (8, 0, 32)),
    "Q2_K": ("scales", (2, 0, 32), "d", "m"),
    "Q3_K": ((1, 2, 32), (2, 0, 32), "scales", "d"),
    "Q4_K": ("d", "m", "scales", (4, 0, 32)),
    "Q5_K": ("d", "m", "scales", (1, 4, 32), (4, 0, 32)),
    "Q6_K": ((4, 0, 64), (2, 4, 32), "scales", "d"),
}
_SCALE_BYTES = {"Q2_K": 16, "Q3_K": 12, "Q4_K": 12, "Q5_K": 12, "Q6_K": 16}


def fields(kind: str) -> Iterator[tuple[str | _Bits, int, int]]:
    """Yield what a block has: field, offset and bytes."""
    at = 0
    for field in _LAYOUT[kind]:
        if isinstance(field, tuple):
            size = BLOCK_TYPES[kind].channels * field[0] // 8
        else:
            size = _SCALE_BYTES[kind] if field == "scales" else 2
        yield field, at, size
        at += size


def block_bytes(kind: str) -> int:
    """Return the bytes of a block."""
    return sum(size for _, _, size in fields(kind))


def packed(name: str, kind: str, linear: QuantizedLinear) -> Tensor:
    """Return the blocks of a linear, uint8 [out, bytes of a row].

    Raises:
        ValueError: its scales or minima are not what such blocks hold.
    """
    rows = len(linear.codes)
    scale, zero = linear.grid.scale, linear.grid.zero
    codes = linear.codes.reshape(rows, -1, BLOCK_TYPES[kind].channels)
    parts: dict[str, Tensor] = {}
    if kind in _SCALE_BYTES:
        scale, zero = (each.reshape(rows, codes.shape[1], -1) for each in (scale, zero))
        symmetric = linear.grid.spec.symmetric
        parts["d"], steps = _in_steps(name, kind, scale, signed=symmetric)
        minima = torch.zeros_like(steps)
        if not symmetric:
            parts["m"], minima = _in_steps(name, kind, zero, signed=False)
        parts["scales"] = _packed_scales(kind, steps, minima)
    else:
        parts = {"d": _bytes(scale.half()), "m": _bytes((-scale * zero).half())}
        if not parts["m"].view(torch.float16).isfinite().all():
            raise ValueError(f"{name}: the minimum of a block is not finite in float16")
    if kind == "Q8_0":
        codes = codes ^ 128  # c - 128 as a signed byte
    laid = [
        _packed_bits(codes, *field) if isinstance(field, tuple) else parts[field]
        for field, _, _ in fields(kind)
    ]
    return torch.cat(laid, -1).reshape(rows, -1)


def unpacked(name: str, kind: str, raw: Tensor) -> QuantizedLinear:
    """Return the codes and grid of blocks, uint8 [out, bytes of a row].

    Raises:
        CannotReadError: a block of Q4_1 or Q5_1 has a minimum that is no multiple of its scale, as
            other tools write.
    """
    spec = GGUF_GRIDS[kind]
    rows, size = len(raw), block_bytes(kind)
    blocks = raw.reshape(rows, -1, size)
    codes = torch.zeros(*blocks.shape[:2], BLOCK_TYPES[kind].channels, dtype=torch.uint8)
    parts: dict[str, Tensor] = {}
    for field, at, count in fields(kind):
        part = blocks[..., at : at + count]
        if isinstance(field, tuple):
            codes |= _unpacked_bits(part, *field)
        else:
            parts[field] = part if field == "scales" else _halves(part)
    if kind == "Q8_0":
        codes = codes ^ 128
    scale, zero = parts["d"], torch.full(blocks.shape[:2], 1 << (spec.bits - 1), dtype=torch.uint8)
    if kind in _SCALE_BYTES:
        steps, minima = _unpacked_scales(kind, parts["scales"])
        scale = (scale[..., None] * steps).reshape(rows, -1)
        zero = zero[..., :1].expand(scale.shape).contiguous()
        if not spec.symmetric:
            zero = (parts["m"][..., None] * minima).reshape(rows, -1)
    elif not spec.symmetric:
        zero = _zeros(name, kind, scale, parts["m"])
    return QuantizedLinear(codes.reshape(rows, -1), Grid(scale, zero, spec))


def _packed_bits(codes: Tensor, bits: int, first: int, width: int) -> Tensor:
    """Return some bits of codes [..., channels] as bytes; see ``_LAYOUT``."""
    part = (codes >> first) & (0xFF >> (8 - bits))
    planes = part.reshape(*codes.shape[:-1], -1, 8 // bits, width)
    found = torch.zeros_like(planes[..., 0, :])
    for i in range(8 // bits):
        found |= planes[..., i, :] << (bits * i)
    return found.reshape(*codes.shape[:-1], -1)


def _unpacked_bits(part: Tensor, bits: int, first: int, width: int) -> Tensor:
    planes = part.reshape(*part.shape[:-1], -1, 1, width)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    found = ((planes >> shifts) & (0xFF >> (8 - bits))) << first
    return found.reshape(*part.shape[:-1], -1)


def _in_steps(name: str, kind: str, values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return d as bytes, and int16 codes, of values d · code [rows, super-blocks, groups]."""
    bits = BLOCK_TYPES[kind].scale_bits
    most = 1 << (bits - 1) if signed else (1 << bits) - 1
    at = values.abs().argmax(-1, keepdim=True)
    top = values.gather(-1, at)
    d = torch.zeros_like(top)
    codes = torch.zeros_like(values)
    left = (top != 0).expand_as(values)
    for k in range(most, 0, -1):
        if not left.any():
            break
        step = (top / (-k if signed else k)).half().float()
        tried = (values / step).round()
        fits = (tried * step == values) & (tried >= (-most if signed else 0))
        fits &= tried < most if signed else tried <= most
        new = left & fits.all(-1, keepdim=True)
        d, codes = torch.where(new[..., :1], step, d), torch.where(new, tried, codes)
        left = left & ~new
    if left.any() or not values.isfinite().all():
        raise ValueError(
            f"{name}: scales or minima are no multiples of one float16 number in each super-block, "
            f"as {kind} holds them; fit the grid with super_block and scale_bits"
        )
    return _bytes(d.squeeze(-1).half()), codes.short()


def _packed_scales(kind: str, steps: Tensor, minima: Tensor) -> Tensor:
    """Return codes of scales and minima, int16 [rows, super-blocks, groups], as bytes."""
    if kind == "Q2_K":
        found = steps | minima << 4
    elif kind == "Q6_K":
        found = steps & 0xFF
    elif kind == "Q3_K":
        raised = steps + 32
        high = raised.reshape(*steps.shape[:-1], 4, 4) >> 4
        shifts = torch.arange(0, 8, 2, dtype=torch.int16)[:, None]
        low = (raised[..., :8] & 15) | (raised[..., 8:] & 15) << 4
        found = torch.cat([low, (high << shifts).sum(-2, dtype=torch.int16)], -1)
    else:
        halves = [each[..., :4] | each[..., 4:] >> 4 << 6 for each in (steps, minima)]
        found = torch.cat([*halves, (steps[..., 4:] & 15) | (minima[..., 4:] & 15) << 4], -1)
    return found.to(torch.uint8)


def _unpacked_scales(kind: str, part: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes of scales and minima, float32 [rows, super-blocks, groups]."""
    raw = part.short()
    steps, minima = raw, torch.zeros_like(raw)
    if kind == "Q2_K":
        steps, minima = raw & 15, raw >> 4
    elif kind == "Q6_K":
        steps = part.view(torch.int8).short()
    elif kind == "Q3_K":
        low = torch.cat([raw[..., :8] & 15, raw[..., :8] >> 4], -1)
        shifts = torch.arange(0, 8, 2, dtype=torch.int16)[:, None]
        high = (raw[..., None, 8:] >> shifts & 3).flatten(-2)
        steps = (low | high << 4) - 32
    else:
        first, second, mixed = raw[..., :4], raw[..., 4:8], raw[..., 8:]
        steps = torch.cat([first & 63, (mixed & 15) | first >> 6 << 4], -1)
        minima = torch.cat([second & 63, mixed >> 4 | second >> 6 << 4], -1)
    return steps.float(), minima.float()


def _bytes(values: Tensor) -> Tensor:
    """Return float16 [rows, groups] as little-endian bytes [rows, groups, 2]."""
    # contiguous() would leave the strides of a single row or block, which view() looks at.
    plain = values.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).reshape(*values.shape, 2)


def _halves(parts: Tensor) -> Tensor:
    """Return bytes [rows, groups, 2] as float32 [rows, groups]."""
    plain = parts.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.float16).squeeze(-1).float()


def _zeros(name: str, kind: str, scale: Tensor, low: Tensor) -> Tensor:
    most = (1 << BLOCK_TYPES[kind].bits) - 1
    zero = (-low / scale).round().nan_to_num(0, 0, 0)
    if ((zero < 0) | (zero > most)).any() or ((-scale * zero).half().float() != low).any():
        raise CannotReadError(
            f"{name}: a block of {kind} has a minimum that is no multiple of its scale, which "
            "mlcalib's grids, with integer zero points, cannot hold"
        )
    return zero.byte()
