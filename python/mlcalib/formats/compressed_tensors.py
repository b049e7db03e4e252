"""compressed-tensors ``pack-quantized``: read by transformers and vLLM.

Checked against the sources of compressed-tensors 0.17 to 0.20. Of a linear [out, in] with b bits:

==================  ==========================  ====================================================
weight_packed       int32 [out, ceil(in·b/32)]  codes, one LSB-first bit stream per row
weight_scale        model dtype [out, groups]   groups = 1 for whole rows ("channel")
weight_shape        int64 [2]                   out, in
weight_zero_point   int32 [ceil(out·b/32),      asymmetric only; LSB-first along *out*
                    groups]
==================  ==========================  ====================================================

The readers' codes and zero points are signed and stored with 2^(b-1) added: stored, they are ours.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.formats.base import Format, formats
from mlcalib.layer_names import patterns

if TYPE_CHECKING:
    from mlcalib._core import Order  # the stub knows it, the compiled module does not

_BITS = (4, 8)
_EXPERT = re.compile(r"\.experts\.\d+\.")
_OBSERVERS = {"minmax": "minmax", "mse": "mse", "gram": "imatrix_mse", "gram_block": "imatrix_mse"}


@formats.register
class CompressedTensors(Format):
    """4 and 8 bits, symmetric or not, in groups that divide the input channels or in whole rows."""

    codes: ClassVar[str] = "weight_packed"

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse what readers cannot hold.

        That is other bits than 4 and 8, group sizes that leave a shorter last group, several grids
        of which one is asymmetric, and experts that are not all on one symmetric grid.
        """
        groups = _by_grid(specs)
        _check_experts(specs, shapes)
        for spec, names in groups:
            _check_one(spec, {name: shapes[name] for name in names})
        if len(groups) > 1 and not all(spec.symmetric for spec, _ in groups):
            found = ", ".join(f"{_describe(spec)} ({names[0]})" for spec, names in groups)
            raise ValueError(
                "compressed-tensors holds linears on different grids only if all are symmetric, "
                f"since transformers reads asymmetric ones as if all had one grid; found {found}. "
                "Quantize symmetric (--symmetric), on one grid, or save with --format dense."
            )

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section, the same for transformers and vLLM; a config group for each grid."""
        groups = _by_grid(specs)
        config: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{index}": _config_group(
                    spec, order, _targets(names, [*specs, *ignore]) if groups[1:] else ["Linear"]
                )
                for index, (spec, names) in enumerate(groups)
            },
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "ignore": ignore,
        }
        if not groups[0][0].symmetric:
            # transformers 5.23 with compressed-tensors 0.18 to 0.20 prepares an unpacked parameter
            # for packed zero points and fails; with this key it dequantizes while loading, every
            # linear by the first config group.
            config["dequantize"] = True
        return config

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return weight_packed, weight_scale, weight_shape and, asymmetric, weight_zero_point."""
        grid, codes = quantized.grid, quantized.codes
        spec = grid.spec
        _check_one(spec, {name: (codes.shape[0], codes.shape[1])})
        scale = grid.scale.to(spec.scale_dtype)
        if not scale.isfinite().all() or (scale.float() != grid.scale).any():
            raise ValueError(
                f"{name}: scales are not finite and exact in {spec.scale_dtype}; "
                "fit the grid with that scale_dtype"
            )
        tensors = {
            f"{name}.weight_packed": _core.pack(codes, spec.bits),
            f"{name}.weight_scale": scale,
            f"{name}.weight_shape": torch.tensor(codes.shape),
        }
        if not spec.symmetric:
            packed = _core.pack(grid.zero.t().contiguous(), spec.bits)
            tensors[f"{name}.weight_zero_point"] = packed.t().contiguous()
        elif (grid.zero != 1 << (spec.bits - 1)).any():
            raise ValueError(
                f"{name}: the grid is symmetric but its zero points are not all "
                f"{1 << (spec.bits - 1)}; a symmetric checkpoint holds none"
            )
        return tensors

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        shape = _tensor(tensors, f"{name}.weight_shape", torch.int64, (2,))
        rows, columns = (int(size) for size in shape)
        groups, bits = spec.groups(columns), spec.bits
        words = (rows, math.ceil(columns * bits / 32))
        packed = _tensor(tensors, f"{name}.weight_packed", torch.int32, words)
        scale = _tensor(tensors, f"{name}.weight_scale", spec.scale_dtype, (rows, groups))
        if spec.symmetric:
            zero = torch.full((rows, groups), 1 << (bits - 1), dtype=torch.uint8)
        else:
            words = (math.ceil(rows * bits / 32), groups)
            packed_zero = _tensor(tensors, f"{name}.weight_zero_point", torch.int32, words)
            zero = _core.unpack(packed_zero.t().contiguous(), bits, rows).t().contiguous()
        grid = Grid(scale.float(), zero, spec)
        return QuantizedLinear(_core.unpack(packed, bits, columns), grid)

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a pack-quantized section written by mlcalib or llm-compressor."""
        try:
            groups = [
                (list(group["targets"]), _read_group(group, config.get("format"), scale_dtype))
                for group in config["config_groups"].values()
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                "quantization_config does not describe groups of quantized weights "
                f"({type(error).__name__}: {error})"
            ) from error
        return {name: _spec_of(name, groups) for name in linears}


def _by_grid(specs: Mapping[str, GridSpec]) -> list[tuple[GridSpec, list[str]]]:
    """Return what a checkpoint tells apart: each grid and its linears, the largest group first."""
    groups: dict[tuple[int, int, bool], tuple[GridSpec, list[str]]] = {}
    for name, spec in specs.items():
        key = (spec.bits, spec.group_size, spec.symmetric)
        groups.setdefault(key, (spec, []))[1].append(name)
    return sorted(groups.values(), key=lambda group: -len(group[1]))


def _describe(spec: GridSpec) -> str:
    kind = "symmetric" if spec.symmetric else "asymmetric"
    return f"{spec.bits} bits, group_size {spec.group_size}, {kind}"


def _check_experts(specs: Mapping[str, GridSpec], linears: Iterable[str]) -> None:
    """Refuse what transformers 5.23 cannot load: it fuses experts, and reads all by one scheme."""
    experts = [name for name in linears if _EXPERT.search(name)]
    grids = _by_grid({name: specs[name] for name in experts if name in specs})
    # Its CompressedTensorsDequantize does not pass zero points of experts on ("Asymmetric quant
    # requires zero-point values").
    if any(not spec.symmetric for spec, _ in grids):
        raise ValueError(
            "transformers cannot load asymmetric experts from compressed-tensors: it drops the "
            f"zero points of {experts[0]} and its like; use symmetric=True or format='dense'"
        )
    left = [name for name in experts if name not in specs]
    if len(grids) > 1 or left:
        found = [f"{names[0]}: {_describe(spec)}" for spec, names in grids]
        found += [f"{left[0]}: floating point"] if left else []
        raise ValueError(
            "transformers loads the experts of a compressed-tensors checkpoint only if all are "
            f"quantized on one grid; found {'; '.join(found)}. Give all experts the same, or save "
            "with format='dense'"
        )


def _check_one(spec: GridSpec, shapes: Mapping[str, tuple[int, int]]) -> None:
    if spec.bits not in _BITS:
        raise ValueError(f"compressed-tensors holds 4 or 8 bits, not {spec.bits}")
    if spec.group_size == -1:
        return
    misfits: dict[int, list[str]] = {}
    for name, (_, channels) in shapes.items():
        if channels % spec.group_size:
            misfits.setdefault(channels, []).append(name)
    if not misfits:
        return
    layers = ", nor ".join(
        f"{channels} input channels of {names[0]}"
        + (f" (and {len(names) - 1} more)" if names[1:] else "")
        for channels, names in misfits.items()
    )
    fitting = _fitting_sizes(spec.group_size, [channels for _, channels in shapes.values()])
    raise ValueError(f"group_size {spec.group_size} does not divide {layers}; use {fitting}")


def _targets(names: list[str], among: Iterable[str]) -> list[str]:
    """Name linears so that vLLM finds them too.

    Beside names there must be no class: vLLM tries the class of a fused linear (``Linear`` is in
    ``QKVParallelLinear``) before the names of its parts.
    """
    # Readers match from the start, but not to the end.
    return [f"re:{pattern}$" for pattern in patterns(names, among)]


def _config_group(spec: GridSpec, order: "Order", targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": "channel" if spec.group_size == -1 else "group",
        "group_size": None if spec.group_size == -1 else spec.group_size,
        "dynamic": False,
        "actorder": "static" if order == "activation" else None,
        "observer": _OBSERVERS[spec.range],
    }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }


def _read_group(group: Mapping[str, Any], form: Any, scale_dtype: torch.dtype) -> GridSpec:
    weights = group["weights"]
    found = (group.get("format") or form, weights["type"], weights["num_bits"])
    strategy, size = weights["strategy"], weights.get("group_size")
    if found not in [("pack-quantized", "int", bits) for bits in _BITS]:
        raise ValueError(f"expected pack-quantized int weights of 4 or 8 bits, found {found}")
    if (order := weights.get("actorder")) in ("group", "dynamic"):
        raise ValueError(f"actorder {order!r} cannot be read; expected static or none")
    if strategy == "channel":
        size = -1
    elif strategy != "group" or not isinstance(size, int):
        raise ValueError(
            f"strategy {strategy!r} with group_size {size!r} cannot be read; "
            "expected channel, or group with a size"
        )
    return GridSpec(found[2], size, bool(weights["symmetric"]), scale_dtype=scale_dtype)


def _spec_of(name: str, groups: list[tuple[list[str], GridSpec]]) -> GridSpec:
    """Return the spec of the group that has a linear: by its name, by a pattern, or by its class.

    That is the order in which compressed-tensors looks.
    """
    tests: tuple[Callable[[str], Any], ...] = (
        lambda target: target == name,
        lambda target: target.startswith("re:") and re.match(target[3:], name),
        lambda target: target == "Linear",
    )
    for test in tests:
        for targets, spec in groups:
            if any(test(target) for target in targets):
                return spec
    raise ValueError(f"quantization_config has no group for {name}, which has codes")


def _fitting_sizes(asked: int, channels: list[int]) -> str:
    """Name group sizes near the asked one that divide all channel counts."""
    common = math.gcd(*channels)
    divisors = [size for size in range(2, 2 * asked + 1) if common % size == 0]
    near = [size for size in divisors if 2 * size >= asked] or divisors[-1:]
    return f"{', '.join(map(str, near))} or -1" if near else "-1"


def _tensor(
    tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """Return a tensor of the checkpoint, or say how it differs from what the config promises."""
    if name not in tensors:
        raise ValueError(f"the checkpoint has no tensor {name}")
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, "
            f"but config.json and weight_shape say {dtype} {list(shape)}"
        )
    return tensor
