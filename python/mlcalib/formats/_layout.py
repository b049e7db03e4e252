"""What the layouts of several formats share."""

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec
from mlcalib.common.layer_names import fused_groups, fused_name

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def by_grid(specs: Mapping[str, GridSpec]) -> list[tuple[GridSpec, list[str]]]:
    """Return what a checkpoint tells apart: each grid and its linears, the largest group first."""
    groups: dict[tuple[int, int, bool, str, int, bool], tuple[GridSpec, list[str]]] = {}
    for name, spec in specs.items():
        held = (spec.numbers, spec.super_block, spec.per_tensor)
        key = (spec.bits, spec.group_size, spec.symmetric, *held)
        groups.setdefault(key, (spec, []))[1].append(name)
    return sorted(groups.values(), key=lambda group: -len(group[1]))


def describe(spec: GridSpec) -> str:
    """Return a grid in words."""
    kind = "symmetric" if spec.symmetric else "asymmetric"
    if spec.numbers != "integer":
        kind = f"numbers {spec.numbers}"
    if spec.super_block:
        kind += f", super_block {spec.super_block}"
    if spec.per_tensor:
        kind += ", per_tensor"
    return f"{spec.bits} bits, group_size {spec.group_size}, {kind}"


def check_groups(
    specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]], *, whole_row: bool = True
) -> None:
    """Refuse group sizes that leave a shorter last group.

    Args:
        specs: of each linear to be quantized.
        shapes: (out, in) of each.
        whole_row: whether -1 may be proposed.

    Raises:
        ValueError: names the layers and sizes that would fit.
    """
    for spec, names in by_grid(specs):
        misfits: dict[int, list[str]] = {}
        for name in names:
            channels = shapes[name][1]
            if spec.group_size != -1 and channels % (spec.super_block or spec.group_size):
                misfits.setdefault(channels, []).append(name)
        if misfits:
            layers = ", nor ".join(
                f"{channels} input channels of {layers[0]}"
                + (f" (and {len(layers) - 1} more)" if layers[1:] else "")
                for channels, layers in misfits.items()
            )
            if spec.super_block:
                raise ValueError(
                    f"super_block {spec.super_block} does not divide {layers}; give a mix, which "
                    "has other blocks for them (scheme='Q4_K_M' and its like)"
                )
            fitting = _fitting_sizes(spec.group_size, [shapes[name][1] for name in names])
            fitting += ["-1"] if whole_row else []
            size = spec.group_size
            raise ValueError(f"group_size {size} does not divide {layers}; use {_either(fitting)}")


def _fitting_sizes(asked: int, channels: list[int]) -> list[str]:
    """Return group sizes near the asked one that divide all channel counts."""
    common = math.gcd(*channels)
    divisors = [size for size in range(2, 2 * asked + 1) if common % size == 0]
    return [str(size) for size in [size for size in divisors if 2 * size >= asked] or divisors[-1:]]


def _either(options: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(options[:-1]), options[-1]])) if options else "none"


def check_words(
    form: str, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]], *, rows: bool
) -> None:
    """Refuse linears whose channels do not fill 32-bit words.

    Args:
        form: the format, for the message.
        specs: of each linear to be quantized.
        shapes: (out, in) of each.
        rows: whether input channels are packed too, not only output channels.

    Raises:
        ValueError: names the layer, its channels and what they must be a multiple of.
    """
    for name, spec in specs.items():
        multiple = 32 // math.gcd(32, spec.bits)
        sides = (("output", shapes[name][0]), ("input", shapes[name][1]))
        for side, channels in sides if rows else sides[:1]:
            if channels % multiple:
                raise ValueError(
                    f"{form} packs {spec.bits}-bit codes into whole words of {multiple} {side} "
                    f"channels, but {name} has {channels}; leave it out (--ignore), or save with "
                    "--format compressed-tensors or dense."
                )


def check_zeros(name: str, grid: Grid) -> None:
    """Refuse a symmetric grid off centre, whose zero points a format would not store.

    Raises:
        ValueError: names the linear.
    """
    middle = 1 << (grid.spec.bits - 1)
    if grid.spec.symmetric and (grid.zero != middle).any():
        raise ValueError(
            f"{name}: the grid is symmetric but its zero points are not all {middle}; a symmetric "
            "checkpoint holds none"
        )


def stored_scale(name: str, grid: Grid) -> Tensor:
    """Return the grid's scales in the dtype that it promises, [rows, groups].

    Raises:
        ValueError: a scale is not finite or not exact in it.
    """
    dtype = grid.spec.scale_dtype
    scale = held_scale(grid, dtype)
    if scale is None:
        raise ValueError(
            f"{name}: scales are not finite and exact in {dtype}; fit the grid with that "
            "scale_dtype"
        )
    return scale


def held_scale(grid: Grid, dtype: torch.dtype) -> Tensor | None:
    """Return the grid's scales in a dtype, [rows, groups]; None if it does not hold them exactly.

    In float8_e4m3fn they are what ``global_scale`` divides. Those of super-blocks are multiples of
    a number, and those in uint8 of several; they are returned as they are, and whether they are
    exact is found out when they are packed.
    """
    if grid.spec.super_block or dtype == grid.spec.scale_dtype == torch.uint8:
        return grid.scale
    if dtype == torch.uint8:
        return None
    if dtype == torch.float8_e4m3fn:
        divisor = grid.spec.global_scale
        if not divisor:
            return None
        scale = (grid.scale * divisor).to(dtype)
        exact = torch.equal(scale.float() / divisor, grid.scale)
    else:
        scale = grid.scale.to(dtype)
        exact = torch.equal(scale.float(), grid.scale)
    return scale if exact and bool(grid.scale.isfinite().all()) else None


def tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    dtypes: torch.dtype | Collection[torch.dtype],
    shape: tuple[int, ...],
) -> Tensor:
    """Return a tensor of the checkpoint, or say how it differs from what the config promises.

    Raises:
        ValueError: it is missing, or has another dtype or shape.
    """
    if name not in tensors:
        raise ValueError(f"the checkpoint has no tensor {name}")
    found = tensors[name]
    expected = {dtypes} if isinstance(dtypes, torch.dtype) else set(dtypes)
    if found.dtype not in expected or found.shape != shape:
        named = " or ".join(sorted(map(str, expected)))
        raise ValueError(
            f"{name} is {found.dtype} {list(found.shape)}, "
            f"but the config and the other tensors ask for {named} {list(shape)}"
        )
    return found


def with_dtype(spec: GridSpec, dtype: torch.dtype, *, symmetric: bool | None = None) -> GridSpec:
    """Return a spec whose scales are held in another dtype, which holds them exactly.

    Args:
        spec: of the grid.
        dtype: of the scales.
        symmetric: None for that of ``spec``.
    """
    return GridSpec(
        spec.bits,
        spec.group_size,
        spec.symmetric if symmetric is None else symmetric,
        spec.range,
        dtype,
        spec.numbers,
        spec.global_scale if dtype in (torch.float8_e4m3fn, torch.uint8) else 0.0,
        spec.super_block,
        spec.scale_bits,
        spec.per_tensor,
    )


def with_fused(names: Iterable[str]) -> list[str]:
    """Return names and, of linears that vLLM fuses, the name that it gives the whole.

    vLLM looks patterns up by ``self_attn.qkv_proj``, ``mlp.gate_up_proj`` and ``mlp.experts``
    (``get_dynamic_override`` in vllm/model_executor/layers/quantization/utils/gptq_utils.py).
    """
    names = list(names)
    return names + [fused_name(members) for members in fused_groups(names)]
