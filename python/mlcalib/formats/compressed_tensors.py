"""compressed-tensors ``pack-quantized``: read by transformers and vLLM.

Checked against the sources of compressed-tensors 0.17 to 0.20. Readers' rules are those of
transformers 5.23 (``quantizers/quantizer_compressed_tensors.py``), and of vLLM and SGLang
(``compressed_tensors/schemes/compressed_tensors_wNa16.py``). Of a linear [out, in] with b bits:

==================  ==========================  ====================================================
weight_packed       int32 [out, ceil(in·b/32)]  codes, one LSB-first bit stream per row
weight_scale        model dtype [out, groups]   groups = 1 for whole rows ("channel")
weight_shape        int64 [2]                   out, in
weight_zero_point   int32 [ceil(out·b/32),      asymmetric only; LSB-first along *out*
                    groups]
==================  ==========================  ====================================================

The readers' codes and zero points are signed and stored with 2^(b-1) added: stored, they are ours.
Codes of 3, 5, 6 and 7 bits lie across words; compressed-tensors 0.17 left bits of each word unused.
vLLM runs other bits than 4 and 8 by its Humming kernels (``schemes/compressed_tensors_humming.py``,
compute capability 7.5), without zero points.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.common.layer_names import patterns
from mlcalib.formats._config_groups import section_of, stated_weights
from mlcalib.formats._layout import (
    by_grid,
    check_groups,
    check_zeros,
    describe,
    stored_scale,
    tensor,
)
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import (
    Facts,
    Verdict,
    Verdicts,
    by_marlin,
    marlin,
    marlin_reasons,
    of_folder,
)
from mlcalib.formats._section import Problem
from mlcalib.formats._static_inputs import has_static_inputs
from mlcalib.formats.base import Format, Shapes, formats

if TYPE_CHECKING:
    from mlcalib._core import Order

_BITS = range(2, 9)
_ACROSS_WORDS = {3, 5, 6, 7}
_OTHERS = {
    "int-quantized": "compressed-tensors-int8",
    "float-quantized": "compressed-tensors-fp8",
    "mxfp4-pack-quantized": "compressed-tensors-mxfp4",
    "nvfp4-pack-quantized": "compressed-tensors-nvfp4",
}
_EXPERT = re.compile(r"\.experts\.\d+\.")
_OBSERVERS = {"minmax": "minmax", "mse": "mse", "gram": "imatrix_mse", "gram_block": "imatrix_mse"}


@formats.register
class CompressedTensors(Format):
    """2 to 8 bits, symmetric or not, in groups that divide the input channels or in whole rows."""

    codes: ClassVar[str] = "weight_packed"
    kv_cache: ClassVar[bool] = True
    stored: ClassVar[str] = "packed (compressed-tensors, pack-quantized)"
    loading: ClassVar[str] = by_transformers("compressed-tensors")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Format:
        """See ``Format.of_config``; W8A8 and floats of few bits have formats of their own.

        Raises:
            NotImplementedError: another format of compressed-tensors.
        """
        form = config.get("format") or "pack-quantized"
        static = has_static_inputs(config)
        if form == "float-quantized":
            scales = {found[0] for found in stated_weights(config, "strategy")}
            if scales == {"channel"} and not static:
                return formats.get(_OTHERS[form])()
            if scales == {"tensor"} and static:
                return formats.get("compressed-tensors-fp8-static")()
        elif form == "nvfp4-pack-quantized" and static:
            return formats.get("compressed-tensors-nvfp4-w4a4")()
        elif form in _OTHERS:
            return formats.get(_OTHERS[form])()
        if form not in ("pack-quantized", "mixed-precision"):  # of which each group is checked
            raise NotImplementedError(
                f"compressed-tensors format {form!r} cannot be read; expected pack-quantized, "
                f"{', '.join(_OTHERS)}"
            )
        return cls()

    @classmethod
    def layout(cls, config: Mapping[str, Any]) -> str:
        """Return the quant_method, and the format unless it is pack-quantized."""
        form = config.get("format") or "pack-quantized"
        return "compressed-tensors" + (f" {form}" if form != "pack-quantized" else "")

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse what readers cannot hold.

        That is group sizes that leave a shorter last group, several grids
        of which one is asymmetric, and experts that are not all on one symmetric grid.
        """
        groups = by_grid(specs)
        _check_experts(specs, shapes)
        for spec, names in groups:
            _check_bits(spec)
            check_groups(dict.fromkeys(names, spec), shapes)
        if len(groups) > 1 and not all(spec.symmetric for spec, _ in groups):
            found = ", ".join(f"{describe(spec)} ({names[0]})" for spec, names in groups)
            raise ValueError(
                "compressed-tensors holds linears on different grids only if all are symmetric, "
                f"since transformers reads asymmetric ones as if all had one grid; found {found}. "
                "Quantize symmetric (--symmetric), on one grid, or save with --format dense."
            )

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section, the same for transformers and vLLM; a config group for each grid."""
        groups = by_grid(specs)
        schemes = [
            _config_group(
                spec, order, _targets(names, [*specs, *ignore]) if groups[1:] else ["Linear"]
            )
            for spec, names in groups
        ]
        config = section_of("pack-quantized", schemes, ignore)
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
        _check_bits(spec)
        check_groups({name: spec}, {name: (codes.shape[0], codes.shape[1])})
        check_zeros(name, grid)
        tensors = {
            f"{name}.weight_packed": _core.pack(codes, spec.bits),
            f"{name}.weight_scale": stored_scale(name, grid),
            f"{name}.weight_shape": torch.tensor(codes.shape),
        }
        if not spec.symmetric:
            packed = _core.pack(grid.zero.t().contiguous(), spec.bits)
            tensors[f"{name}.weight_zero_point"] = packed.t().contiguous()
        return tensors

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed."""
        shape = tensor(tensors, f"{name}.weight_shape", torch.int64, (2,))
        rows, columns = (int(size) for size in shape)
        groups, bits = spec.groups(columns), spec.bits
        words = (rows, math.ceil(columns * bits / 32))
        packed = tensor(tensors, f"{name}.weight_packed", torch.int32, words)
        scale = tensor(tensors, f"{name}.weight_scale", spec.scale_dtype, (rows, groups))
        if spec.symmetric:
            zero = torch.full((rows, groups), 1 << (bits - 1), dtype=torch.uint8)
        else:
            words = (math.ceil(rows * bits / 32), groups)
            packed_zero = tensor(tensors, f"{name}.weight_zero_point", torch.int32, words)
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

    def check_section(self, config: Mapping[str, Any]) -> Iterator[Problem]:
        """Ask the library itself, whose schemes forbid unknown keys."""
        from compressed_tensors.quantization import QuantizationConfig

        try:
            QuantizationConfig.model_validate(dict(config))
        except (ValueError, TypeError) as error:
            told = " ".join(str(error).split())
            yield (
                "refused",
                f"compressed-tensors {version('compressed-tensors')}, by which transformers, vLLM "
                f"and SGLang read it, refuses the quantization_config: {told[:500]}",
            )

    def stored_shape(self, name: str, shapes: Shapes) -> tuple[int, int] | None:
        """Return (out, -1): weight_shape, a tensor, knows the inputs."""
        packed = shapes.get(f"{name}.weight_packed", ())
        known = len(packed) == 2 and f"{name}.weight_scale" in shapes
        return (packed[0], -1) if known else None

    def reason_unpacked(self, config: Mapping[str, Any]) -> str | None:
        """Return what else than weights is quantized."""
        groups = config.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            if not isinstance(group, dict):
                return "its scheme is a name in compressed-tensors"
            if group.get("input_activations") or group.get("output_activations"):
                return "its activations are quantized too"
        return "its cache is quantized too" if config.get("kv_cache_scheme") else None

    def order(self, config: Mapping[str, Any]) -> "Order":
        """Return the order by ``actorder``."""
        groups = (config.get("config_groups") or {}).values()
        static = any((group.get("weights") or {}).get("actorder") == "static" for group in groups)
        return "activation" if static else "natural"

    def left_out(self, config: Mapping[str, Any]) -> list[str]:
        """Return the names that ``ignore`` has; patterns are left to the tensors."""
        return [name for name in config.get("ignore") or [] if not name.startswith("re:")]

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; see the module's docstring for the rules."""
        wrong = []
        grids = facts.grids
        asymmetric = any(not symmetric for _, _, symmetric in grids)
        if asymmetric and not facts.section.get("dequantize"):
            wrong.append(
                "compressed-tensors 0.18 to 0.20 fail on packed zero points; add "
                '"dequantize": true to quantization_config'
            )
        if asymmetric and len(grids) > 1:
            wrong.append("it reads asymmetric linears on several grids as if all had the first")
        across = _ACROSS_WORDS.intersection(bits for bits, _, _ in grids)
        newer = " 0.18 or newer, which packs other bits than 2, 4 and 8 densely,"
        needs = (f"with compressed-tensors{newer if across else ''} installed",)
        transformers = Verdict(not wrong, tuple(wrong) or needs)
        vllm, sglang = by_marlin(facts, marlin_reasons(facts))
        if not vllm.loads and all(_humming(*grid) for grid in grids):
            vllm = Verdict(
                True, ("by its Humming kernels: a version of 2026 that has them is needed",)
            )
        return of_folder(facts, transformers, vllm, sglang)


def _humming(bits: int, group_size: int, symmetric: bool) -> bool:
    """Say whether vLLM runs a grid by Humming kernels, or by Marlin's."""
    if bits in (4, 8):
        return marlin(bits, group_size, zero_points=not symmetric) is None
    return symmetric


def _check_experts(specs: Mapping[str, GridSpec], linears: Iterable[str]) -> None:
    """Refuse what transformers 5.23 cannot load: it fuses experts, and reads all by one scheme."""
    experts = [name for name in linears if _EXPERT.search(name)]
    grids = by_grid({name: specs[name] for name in experts if name in specs})
    # Its CompressedTensorsDequantize does not pass zero points of experts on ("Asymmetric quant
    # requires zero-point values").
    if any(not spec.symmetric for spec, _ in grids):
        raise ValueError(
            "transformers cannot load asymmetric experts from compressed-tensors: it drops the "
            f"zero points of {experts[0]} and its like; use symmetric=True or format='dense'"
        )
    left = [name for name in experts if name not in specs]
    if len(grids) > 1 or left:
        found = [f"{names[0]}: {describe(spec)}" for spec, names in grids]
        found += [f"{left[0]}: floating point"] if left else []
        raise ValueError(
            "transformers loads the experts of a compressed-tensors checkpoint only if all are "
            f"quantized on one grid; found {'; '.join(found)}. Give all experts the same, or save "
            "with format='dense'"
        )


def _check_bits(spec: GridSpec) -> None:
    if spec.bits not in _BITS:
        raise ValueError(f"compressed-tensors holds 2 to 8 bits, not {spec.bits}")


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
        raise CannotReadError(f"expected pack-quantized int weights of 2 to 8 bits, found {found}")
    if (order := weights.get("actorder")) in ("group", "dynamic"):
        raise CannotReadError(f"actorder {order!r} cannot be read; expected static or none")
    if strategy == "channel":
        size = -1
    elif strategy != "group" or not isinstance(size, int):
        raise CannotReadError(
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
