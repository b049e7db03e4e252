"""Float64 references, written the textbook way and never imported by the package."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHRINKS = [1 - 0.03 * i for i in range(14)]
LEVELS = [*(i / 4 for i in range(10)), *(-i / 4 for i in range(1, 5))]
"""Of signed scales: how many more than 2^(bits - 1) an extreme is away from 0."""

_POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
NUMBERS = {  # by code: of arXiv 2305.14314 (appendix E), OCP MX 1.0 and OCP OFP8
    "nf4": torch.tensor(
        [
            *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
            *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
            *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
            *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
        ],
        dtype=torch.float64,
    ),
    "e2m1": torch.tensor(_POSITIVE + [-x for x in _POSITIVE], dtype=torch.float64),
    "e4m3": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double(),
}


def fit_group(
    w: Tensor,
    bits: int,
    symmetric: bool,
    importance: Tensor | None,
    search: bool,
    gram: Tensor | None = None,
    numbers: str = "integer",
    scales: str = "any",
    global_scale: float = 0.0,
    *,
    minima: bool = False,
    signed: bool = False,
):
    """(scale, zero) [rows] of one group w [rows, columns]; the best of the shrunk ranges.

    Errors are weighted by ``importance`` [columns], or by the group's block of the Gram. For
    ``scales`` see ``held_scale``. With ``minima``, zero is what the weight of code 0 is below 0.
    With ``signed`` scales code 0 is on the side of the larger extreme; see ``LEVELS``.
    """
    max_code = 2**bits - 1
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    side = torch.where(high > -low, -1.0, 1.0)  # of code 0
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    best = None
    tried = LEVELS if signed else SHRINKS
    for shrink in tried if search else tried[:1]:
        scale = ((high - low) * shrink / max_code).clamp(min=1.17549435e-38)
        if signed:
            zero = torch.full_like(scale, (max_code + 1) / 2)
            scale = side * (high / (zero + shrink)).clamp(min=1.17549435e-38)
        elif numbers != "integer":
            scale = held_scale(high * shrink, numbers, scales, global_scale)
            zero = torch.zeros_like(scale)
        elif symmetric:
            zero = torch.full_like(scale, (max_code + 1) / 2)
        elif minima:
            zero = -low * shrink
        else:
            zero = torch.round(-low * shrink / scale).clamp(0, max_code)
        d = w - nearest(w, scale[:, None], zero[:, None], max_code, numbers, minima)
        loss = (d * d * (1 if importance is None else importance)).sum(1)
        if gram is not None:
            loss = (d @ gram * d).sum(1)
        if best is None:
            best, best_scale, best_zero = loss, scale, zero
        better = loss < best
        best = torch.where(better, loss, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def fit_tensor(
    w: Tensor,
    bits: int,
    importance: Tensor | None,
    search: bool,
    gram: Tensor | None = None,
    numbers: str = "integer",
):
    """(scale, zero) of a whole weight w [rows, columns]; the best of the shrunk ranges."""
    largest = 2**bits - 1 if numbers == "integer" else NUMBERS[numbers].nan_to_num(0).max()
    width = 2 if numbers == "integer" else 1  # of the range, in extremes
    zero = (largest + 1) / 2 if numbers == "integer" else 0.0
    best, found = math.inf, None
    for shrink in SHRINKS if search else [1.0]:
        scale = (width * w.abs().max() * shrink / largest).clamp(min=1.17549435e-38)
        d = w - nearest(w, scale, torch.tensor(zero).double(), largest, numbers)
        lost = (d @ gram * d).sum() if gram is not None else d * d
        if gram is None and importance is not None:
            lost = lost * importance
        if found is None or float(lost.sum()) < best:
            best, found = float(lost.sum()), scale
    return found, zero


def fit_block(
    w: Tensor,
    group_size: int,
    importance: Tensor | None,
    *,
    bits: int,
    symmetric: bool,
    search: str,
    super_block: int,
    scale_bits: int,
    **numbers,
):
    """(scale, zero) [rows, groups] of columns that are fitted together: a group or a super-block.

    For ``numbers`` see ``fit_group``.
    """
    minima, signed = super_block > 0 and not symmetric, super_block > 0 and symmetric
    found = []
    for first in range(0, w.shape[1], group_size):
        part = slice(first, first + group_size)
        own = None if importance is None else importance[part]
        searched = (bits, symmetric, own, search != "minmax")
        found.append(fit_group(w[:, part], *searched, **numbers, minima=minima, signed=signed))
    scale, zero = (torch.stack(each, 1) for each in zip(*found, strict=True))
    scale = scale.float().double()
    if signed:
        scale = in_signed_steps(scale, 2 ** (scale_bits - 1))
    elif super_block:
        scale = in_steps(scale, 1, 2**scale_bits - 1)
        zero = in_steps(zero, 0, 2**scale_bits - 1) if minima else zero
    return scale, zero


def held_scale(extreme: Tensor, numbers: str, scales: str, global_scale: float) -> Tensor:
    """The scale that makes the largest number the extreme, as the grid can hold it.

    ``any``; ``powers`` of two as in OCP MX, where an extreme of 7/4 of a power or more counts as
    the next; ``e4m3``, FP8 numbers divided by ``global_scale``.
    """
    largest = NUMBERS[numbers].nan_to_num(0).max()
    if scales == "powers":
        power = torch.floor(torch.log2(extreme))
        power = power + (extreme >= 1.75 * 2**power)
        return (2 ** (power - torch.floor(torch.log2(largest)))).clamp(min=1.17549435e-38)
    scale = (extreme / largest).clamp(min=1.17549435e-38)
    if scales == "any":
        return scale
    step = 2.0**-9
    numbers_of_scales = NUMBERS["e4m3"][nearest_code(scale * global_scale, "e4m3")]
    return numbers_of_scales.clamp(min=step) / global_scale


def in_steps(values: Tensor, least: int, most: int) -> Tensor:
    """Each of a super-block's values [rows, groups] as the nearest multiple of one float16 number.

    That is the largest value divided by ``most``; multiples are from ``least`` to ``most``.
    """
    step = (values.amax(1, keepdim=True) / most).clamp(min=2.0**-24).half().double()
    return torch.round(values / step).clamp(least, most) * step


def in_signed_steps(values: Tensor, most: int) -> Tensor:
    """The same from ``-most`` to ``most - 1`` but 0, where the largest magnitude is ``-most``."""
    high, low = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    step = (values.abs().amax(1, keepdim=True) / most).clamp(min=2.0**-24).half().double()
    step = torch.where(high > -low, -step, step)
    codes = torch.round(values / step)
    codes = torch.where(codes == 0, values.sign() * step.sign(), codes)
    return codes.clamp(-most, most - 1) * step


def nearest_code(x: Tensor, numbers: str) -> Tensor:
    """The code of the number nearest to x; of two, that of NF4 below, of floats the even one."""
    table = NUMBERS[numbers].clone()
    if numbers != "nf4":
        table[len(table) // 2] = math.nan  # -0
    distance = (x[..., None] - table).abs().nan_to_num(math.inf)
    codes = torch.arange(len(table))
    order = codes if numbers == "nf4" else codes % 2 * len(table) + codes
    near = distance == distance.amin(-1, keepdim=True)
    return torch.where(near, order, 2 * len(table)).argmin(-1)


def nearest(
    w: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    numbers: str = "integer",
    minima: bool = False,
) -> Tensor:
    """The level of the grid nearest to w."""
    if minima:
        return scale * torch.round((w + zero) / scale).clamp(0, max_code) - zero
    if numbers != "integer":
        return scale * NUMBERS[numbers][nearest_code(w / scale, numbers)]
    return scale * (torch.round(w / scale) + zero).clamp(0, max_code).sub(zero)


def gptq(
    weight: Tensor,
    gram: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    search: str = "gram",
    damp: float = 0.01,
    order: str = "activation",
    static_grid: bool = True,
    grid: tuple[Tensor, Tensor] | None = None,
    numbers: str = "integer",
    scales: str = "any",
    global_scale: float = 0.0,
    super_block: int = 0,
    scale_bits: int = 0,
):
    """GPTQ in the classic inverse form (arXiv 2210.17323, algorithm 1), column by column.

    With ``grid`` = (scale, zero) [rows, groups] the grids are given. Returns codes, scale, zero,
    loss.
    """
    w = weight.double().clone()
    rows, columns = w.shape
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    max_code = 2**bits - 1
    h = gram.double().clone()
    h += torch.eye(columns, dtype=torch.float64) * damp * h.diagonal().mean()
    importance = h.diagonal().clone() if search == "gram" else None
    if search == "gram":
        # The core weights by the fp32 sum of the diagonal and the damping.
        importance = importance.float().double()
    scale = torch.zeros(rows, groups, dtype=torch.float64)
    zero = torch.zeros(rows, groups, dtype=torch.float64)
    minima = super_block > 0 and not symmetric
    width = super_block or size  # of what is fitted at once

    def fit(first: int, held: Tensor) -> None:
        part = slice(first, min(first + width, columns))
        inside = slice(first // size, -(-part.stop // size))
        scale[:, inside], zero[:, inside] = fit_block(
            held[:, part],
            size,
            None if importance is None else importance[part],
            bits=bits,
            symmetric=symmetric,
            search=search,
            super_block=super_block,
            scale_bits=scale_bits,
            numbers=numbers,
            scales=scales,
            global_scale=global_scale,
        )

    if grid is not None:
        scale, zero = grid[0].double(), grid[1].double()
    elif static_grid:
        for first in range(0, columns, width):
            fit(first, w)

    visits = torch.arange(columns)
    if order == "activation":
        visits = torch.argsort(h.diagonal(), descending=True, stable=True)
    h_visits = h[visits][:, visits]
    inverse = torch.linalg.cholesky(torch.linalg.inv(h_visits), upper=True)
    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    held = w.clone()
    for k in range(columns):
        column = int(visits[k])
        g = column // size
        if grid is None and not static_grid and column % width == 0:
            fit(column, held)
        s, z = scale[:, g], zero[:, g]
        q = nearest(held[:, column], s, z, max_code, numbers, minima)
        if minima:
            codes[:, column] = torch.round((q + z) / s).to(torch.uint8)
        elif numbers == "integer":
            codes[:, column] = torch.round(q / s + z).to(torch.uint8)
        else:
            codes[:, column] = nearest_code(q / s, numbers).to(torch.uint8)
        error = (held[:, column] - q) / inverse[k, k]
        held[:, visits[k:]] -= error[:, None] * inverse[k, k:][None, :]
        held[:, column] = q
    return codes, scale, zero, loss(weight, held, gram)


def two_sided(
    weight: Tensor, gram: Tensor, output: Tensor, *, output_damp: float, block: int, **options
):
    """GPTQ for tr(O D G Dᵀ): rows in falling order of diag(O), ``block`` of them at a time.

    What is left of the rows moves to where the loss is least, given the errors D of those before:
    by O_RR⁻¹ O_R< D_<, R the rows that are left. Grids are those of the weights as they were.
    Returns codes, scale, zero, loss.
    """
    w = weight.double()
    _, scale, zero, _ = gptq(weight, gram, **options)
    o = output.double().clone()
    o += torch.eye(len(o), dtype=torch.float64) * output_damp * o.diagonal().mean()
    order = torch.argsort(o.diagonal(), descending=True, stable=True)
    codes = torch.zeros(w.shape, dtype=torch.uint8)
    error = torch.zeros_like(w)
    width = options["group_size"] if options["group_size"] != -1 else w.shape[1]
    for first in range(0, len(w), block):
        rows, left, before = order[first : first + block], order[first:], order[:first]
        move = torch.linalg.solve(o[left][:, left], o[left][:, before] @ error[before])
        target = w[rows] + move[: len(rows)]
        grid = (scale[rows], zero[rows])
        codes[rows] = gptq(target, gram, grid=grid, **options)[0]
        levels = [each.repeat_interleave(width, 1)[:, : w.shape[1]] for each in grid]
        error[rows] = w[rows] - levels[0] * (codes[rows].double() - levels[1])
    return codes, scale, zero, two_sided_loss(output, error, gram)


def descend(
    weight: Tensor,
    hessian: Tensor,
    output: Tensor,
    codes: Tensor,
    grid: tuple[Tensor, Tensor],
    *,
    bits: int,
    group_size: int,
    sweeps: int,
    tile: int,
) -> tuple[Tensor, Tensor]:
    """Coordinate descent on tr(O D H Dᵀ) over integer codes (arXiv 2309.01885).

    ``tile`` rows at a time, column by column, row by row; before its first sweep the scales of a
    tile, group by group. ``grid`` is scale and zero, [rows, groups]. Returns codes and scale.
    """
    w, h, o = weight.double(), hessian.double(), output.double()
    scale, zero = (each.double() for each in grid)
    scale, codes = scale.clone(), codes.double()
    group = torch.arange(w.shape[1]) // group_size
    error = scale[:, group] * (codes - zero[:, group]) - w
    for sweep in range(sweeps):
        for first in range(0, len(w), tile):
            rows = range(first, min(first + tile, len(w)))
            for g in range(scale.shape[1] if sweep == 0 else 0):
                columns = (group == g).nonzero().flatten()
                units = codes[rows][:, columns] - zero[rows, g, None]
                slope = ((o[rows] @ error @ h[:, columns]) * units).sum(1)
                normal = o[rows][:, rows] * (units @ h[columns][:, columns] @ units.T)
                step = -torch.linalg.pinv(normal, hermitian=True) @ slope  # groups of zeros
                scale[rows, g] += step
                error[first : first + tile, columns] += step[:, None] * units
            for j in range(w.shape[1]):
                for i in rows:
                    each = scale[i, group[j]]
                    step = -(o[i] @ error @ h[:, j]) / (o[i, i] * h[j, j])
                    code = (codes[i, j] + step / each).round().clamp(0, 2**bits - 1)
                    error[i, j] += each * (code - codes[i, j])
                    codes[i, j] = code
    return codes.byte(), scale


def two_sided_loss(output: Tensor, change: Tensor, gram: Tensor) -> float:
    """tr(O D G Dᵀ)."""
    d = change.double()
    return float((output.double() @ d @ gram.double() * d).sum())


def loss(weight: Tensor, quantized: Tensor, gram: Tensor) -> float:
    """tr(D G Dᵀ), D = weight - quantized."""
    d = weight.double() - quantized.double()
    return float((d @ gram.double() * d).sum())


def round_groups(weight: Tensor, bits: int, group_size: int, symmetric: bool = False) -> Tensor:
    """The levels nearest to weight, each group on the grid of its own extremes."""
    parts = []
    for part in weight.double().split(group_size, dim=1):
        scale, zero = fit_group(part, bits, symmetric, None, search=False)
        parts.append(nearest(part, scale[:, None], zero[:, None], 2**bits - 1))
    return torch.cat(parts, dim=1)


def awq_scales(mean: Tensor, points: int, source_of: Tensor | None = None) -> Tensor:
    """Candidate scales of AWQ (arXiv 2306.00978 and its authors' code), [points, channels]."""
    mean = mean.double()
    if source_of is not None:
        mean = torch.stack([mean[source_of == source].mean() for source in source_of])
    scales = []
    for point in range(points):
        power = mean.pow(point / points).clamp(min=1e-4)
        alive = power[mean > 0]
        scales.append((power / (alive.max() * alive.min()).sqrt()).where(mean > 0, 1.0))
    return torch.stack(scales)


def awq_losses(
    weights: list[Tensor], x: Tensor, scales: Tensor, *, bits: int, group_size: int
) -> list[float]:
    """The search of the authors' code: for each scale, the squared error of the outputs."""
    losses = []
    for scale in scales:
        rounded = [round_groups(w.double() * scale, bits, group_size) / scale for w in weights]
        errors = [x.double() @ (w.double() - q).T for w, q in zip(weights, rounded, strict=True)]
        losses.append(sum(float(error.square().sum()) for error in errors))
    return losses


def corrected(
    weight: Tensor, x: Tensor, reference: Tensor, strength: float, ridge: float
) -> Tensor:
    """W + strength · W E (G + λI)⁻¹ from the activations themselves (arXiv 2504.02692)."""
    missing = (reference.double() - x.double()) @ weight.double().T
    return corrected_by(weight, x, missing, strength, ridge)


def corrected_by(
    weight: Tensor, x: Tensor, missing: Tensor, strength: float, ridge: float
) -> Tensor:
    """W + strength · Σ d xᵀ (G + λI)⁻¹, where d [tokens, out] is missing from outputs."""
    x = x.double()
    gram = x.T @ x
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return weight.double() + strength * torch.linalg.solve(damped, x.T @ missing.double()).T


def held_out_strength(
    weights: Sequence[Tensor],
    halves: Sequence[tuple[Tensor, Sequence[Tensor]]],
    ridge: float,
) -> float:
    """The strength that is best for the half of the text that a correction was not made from.

    ``halves`` are two pairs of x [tokens, in] and what is missing from the outputs of each weight,
    d [tokens, out]. The squared errors of all outputs are looked at token by token.
    """
    gained = spent = 0.0
    for (x, missing), (other, there) in (tuple(halves), tuple(reversed(halves))):
        for weight, made, wanted in zip(weights, missing, there, strict=True):
            change = corrected_by(weight, x, made, 1.0, ridge) - weight.double()
            moved = other.double() @ change.T
            gained += float((moved * wanted.double()).sum())
            spent += float(moved.square().sum())
    share = min(1.0, max(0.0, gained / spent)) if spent else 0.0
    return 2 * share / (1 + share)
