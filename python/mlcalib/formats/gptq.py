r"""GPTQ layout of AutoGPTQ and GPTQModel: read by transformers, vLLM, SGLang and GPTQModel.

Checked against the sources of GPTQModel 7.7 (``gptqmodel/nn_modules/qlinear/__init__.py``,
``GPTQQuantLinear._register_gptq_buffers`` and ``PackableQuantLinear.dequantize_weight``; zeros in
``gptqmodel/utils/model.py``, ``convert_gptq_v1_to_v2_format_module``) and vLLM
(``vllm/model_executor/layers/quantization/auto_gptq.py``). Readers' rules are those of
transformers 5.23 (``quantizers/quantizer_gptq.py``), optimum 2.3 (``optimum/gptq/quantizer.py``),
GPTQModel 7.7 (``gptqmodel/nn_modules/qlinear/torch.py``), vLLM (``TYPE_MAP``) and SGLang
(``python/sglang/srt/layers/quantization/gptq.py``). Of a linear [out, in] with b bits:

==========  ======================  ===============================================================
qweight     int32 [in·b/32, out]    codes, one LSB-first bit stream per column, along *in*
qzeros      int32 [groups,          zero points, LSB-first along *out*; one less than they are where
            out·b/32]               checkpoint_format is "gptq" (v1), as they are where "gptq_v2"
scales      dtype [groups, out]     the model's dtype; float16 for a float32 model
g_idx       int32 [in]              group of each input channel: i // group_size
==========  ======================  ===============================================================

The solver's activation order has static groups, which are consecutive channels: ``g_idx`` stays
trivial and ``desc_act`` false, however channels were visited.

Version 1 has no room for a zero point 0, which asymmetric grids need. So symmetric checkpoints are
written as version 1, which every reader knows, and asymmetric ones as version 2.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.common.layer_names import patterns
from mlcalib.formats._layout import (
    SCALE_DTYPES,
    by_grid,
    check_groups,
    check_words,
    check_zeros,
    stored_scale,
    tensor,
    with_dtype,
    with_fused,
)
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import (
    Facts,
    Verdict,
    Verdicts,
    by_marlin,
    group_size_reasons,
    marlin,
    of_folder,
)
from mlcalib.formats._section import Problem, check_flags, check_keys, check_sizes
from mlcalib.formats.base import Format, Shapes, formats

if TYPE_CHECKING:
    from mlcalib._core import Order

BITS = (2, 3, 4, 8)
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_GPTQMODEL_GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
_KEYS = {
    "quant_method", "bits", "group_size", "desc_act", "sym", "lm_head", "checkpoint_format",
    "format", "pack_dtype", "true_sequential", "damp_percent", "damp_auto_increment", "meta",
    "dynamic", "modules_in_block_to_quantize", "static_groups", "act_group_aware", "backend",
    "block_name_to_quantize", "model_seqlen", "tokenizer", "dataset",
    "module_name_preceding_first_block", "batch_size", "pad_token_id", "max_input_length",
    "cache_block_outputs", "model_name_or_path",
    "model_file_base_name", "use_exllama", "exllama_config", "disable_exllama", "is_marlin_format",
    "use_cuda_fp16", "autoround_version", "mse", "offload_to_disk", "adapter", "rotation", "method",
}  # fmt: skip


@formats.register
class Gptq(Format):
    """2, 3, 4 and 8 bits, symmetric or not, in groups that divide the input channels or in rows."""

    codes: ClassVar[str] = "qweight"
    half_scales: ClassVar[bool] = True
    middle_zeros: ClassVar[bool] = True
    config_file: ClassVar[str] = "quantize_config.json"
    config_files: ClassVar[tuple[str, ...]] = (config_file,)
    stored: ClassVar[str] = "packed (GPTQ layout)"
    loading: ClassVar[str] = by_transformers("gptqmodel", "optimum")

    def __init__(self, version: int | None = None) -> None:
        """Fix the version of zero points; None for what the module's docstring says."""
        self._version = version

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Gptq":
        """See ``Format.of_config``; checkpoint_format says the version, "gptq" where it is missing.

        Raises:
            CannotReadError: a checkpoint_format other than gptq and gptq_v2.
        """
        form = config.get("checkpoint_format") or config.get("format") or "gptq"
        if form not in _VERSIONS:
            raise CannotReadError(
                f"checkpoint_format {form!r} cannot be read; expected {' or '.join(_VERSIONS)}"
            )
        return cls(_VERSIONS[form])

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse other bits than 2, 3, 4 and 8, short last groups, and words that are not full."""
        for name, spec in specs.items():
            if spec.bits not in BITS:
                raise ValueError(f"gptq holds 2, 3, 4 or 8 bits, not {spec.bits} ({name})")
            if self._version == 1 and not spec.symmetric:
                raise ValueError(
                    f"{name}: an asymmetric grid has zero points 0, which checkpoint_format 'gptq' "
                    "cannot hold; use gptq_v2"
                )
        if self._version is None and len({spec.symmetric for spec in specs.values()}) > 1:
            raise ValueError(
                "symmetric and asymmetric linears in one checkpoint need checkpoint_format "
                "gptq_v2; save with --format gptq-v2"
            )
        check_groups(specs, shapes)
        check_words("gptq", specs, shapes, rows=True)

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section; other grids than the commonest and linears left out are ``dynamic``.

        Patterns of ``dynamic`` name what vLLM fuses too. Where linears are left out,
        ``modules_in_block_to_quantize`` names the others, for optimum, which knows no ``dynamic``.
        """
        (base, _), *others = by_grid(specs)
        among = with_fused([*specs, *ignore])
        dynamic = {
            f"+:{pattern}$": {
                "bits": spec.bits,
                "group_size": spec.group_size,
                "sym": spec.symmetric,
                "desc_act": False,
            }
            for spec, names in others
            for pattern in patterns(with_fused(names), among)
        }
        left_out = [name for name in ignore if name != "lm_head"]
        dynamic |= {f"-:{pattern}$": {} for pattern in patterns(with_fused(left_out), among)}
        config: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": base.bits,
            "group_size": base.group_size,
            "desc_act": False,
            "sym": base.symmetric,
            "lm_head": "lm_head" in specs,
            "checkpoint_format": "gptq_v2" if self._second(specs.values()) else "gptq",
            "pack_dtype": "int32",
            "true_sequential": True,
            "damp_percent": 0.01,  # transformers' GPTQConfig wants one; nothing reads it
            "meta": {
                "quantizer": [f"mlcalib:{_core.build_info()['version']}"],
                "static_groups": order == "activation",
            },
        }
        if dynamic:
            config["dynamic"] = dynamic
        if left_out:
            config["modules_in_block_to_quantize"] = [sorted(specs)]
        return config

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return qweight, qzeros, scales and g_idx, in the version of this linear's own grid."""
        grid, codes = quantized.grid, quantized.codes
        spec, (rows, columns) = grid.spec, codes.shape
        self.check({name: spec}, {name: (rows, columns)})
        check_zeros(name, grid)
        # Version 1 holds symmetric grids only, whose zero points are mid-range: none goes below 0.
        zeros = grid.zero if self._second([spec]) else grid.zero - 1
        size = columns if spec.group_size == -1 else spec.group_size
        return {
            f"{name}.qweight": _core.pack(codes, spec.bits).t().contiguous(),
            f"{name}.qzeros": _core.pack(zeros.t().contiguous(), spec.bits),
            f"{name}.scales": stored_scale(name, grid).t().contiguous(),
            f"{name}.g_idx": torch.arange(columns, dtype=torch.int32) // size,
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed; the scale dtype is the tensor's own.

        Zero points of version 1 are read as GPTQModel reads them. A missing ``g_idx`` is trivial.

        Raises:
            CannotReadError: channels in another order (``desc_act``).
            ValueError: also for symmetric zero points off centre, which a wrong checkpoint_format
                explains.
        """
        bits = spec.bits
        qweight = tensors.get(f"{name}.qweight")
        if qweight is None or qweight.dim() != 2:
            raise ValueError(f"the checkpoint has no matrix {name}.qweight")
        rows, columns = qweight.shape[1], qweight.shape[0] * 32 // bits
        check_groups({name: spec}, {name: (rows, columns)})
        groups = spec.groups(columns)
        tensor(tensors, f"{name}.qweight", torch.int32, (math.ceil(columns * bits / 32), rows))
        scale = tensor(tensors, f"{name}.scales", SCALE_DTYPES, (groups, rows))
        words = (groups, math.ceil(rows * bits / 32))
        packed = tensor(tensors, f"{name}.qzeros", torch.int32, words)
        zeros = _zeros(packed, bits, rows, second=self._second([spec]))
        if f"{name}.g_idx" in tensors:
            _check_order(tensor(tensors, f"{name}.g_idx", torch.int32, (columns,)), name, spec)
        if spec.symmetric and (zeros != 1 << (bits - 1)).any():
            raise ValueError(
                f"{name}.qzeros: read as version {2 if self._second([spec]) else 1}, the zero "
                f"points are not all {1 << (bits - 1)}, though the config says sym; is "
                "checkpoint_format wrong?"
            )
        grid = Grid(
            scale.float().t().contiguous(), zeros.t().contiguous(), with_dtype(spec, scale.dtype)
        )
        return QuantizedLinear(_core.unpack(qweight.t().contiguous(), bits, columns), grid)

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a section of mlcalib, AutoGPTQ or GPTQModel, ``dynamic`` included."""
        dynamic = config.get("dynamic") or {}
        specs = {}
        for name in linears:
            own = {**config, **_override(dynamic, name)}
            try:
                bits, size, symmetric = own["bits"], own["group_size"], own["sym"]
            except KeyError as error:
                raise ValueError(f"quantization_config has no {error}") from error
            if bits not in BITS or not isinstance(size, int):
                raise CannotReadError(
                    f"{name}: expected 2, 3, 4 or 8 bits and a group_size, found {bits!r}, {size!r}"
                )
            specs[name] = GridSpec(bits, size, bool(symmetric), scale_dtype=scale_dtype)
        return specs

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return the model's dtype, or float16 for float32, which readers have no kernel for."""
        dtype = super().scale_dtype(model_dtype)
        return torch.float16 if dtype == torch.float32 else dtype

    def check_section(self, config: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield keys that no reader knows, and values that vLLM refuses."""
        yield from check_keys(config, _KEYS)
        yield from check_sizes(config)
        yield from check_flags(config, ("desc_act", "sym"))

    def stored_shape(self, name: str, shapes: Shapes) -> tuple[int, int] | None:
        """Return (out, in) by scales and g_idx."""
        scales, g_idx = shapes.get(f"{name}.scales", ()), shapes.get(f"{name}.g_idx", ())
        return (scales[1], g_idx[0]) if len(scales) == 2 and len(g_idx) == 1 else None

    def tensors_decide(self, config: Mapping[str, Any]) -> bool:
        """Return whether channels may be in another order, which only ``g_idx`` tells."""
        return bool(config.get("desc_act"))

    def order(self, config: Mapping[str, Any]) -> "Order":
        """Return the order by ``meta``."""
        return "activation" if (config.get("meta") or {}).get("static_groups") else "natural"

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; see the module's docstring for the rules."""
        wrong = group_size_reasons(facts, _GPTQMODEL_GROUP_SIZES)
        if len(facts.grids) > 1:
            wrong.append("optimum makes all linears by one grid and knows no dynamic")
        needs = ["with gptqmodel and optimum installed"]
        if (4, -1, False) in facts.grids:  # transform_cpu in gptqmodel's qlinear/torch_fused.py
            needs.append("on CPUs GPTQModel 7.6 picks a kernel here that takes zero points for 8")
        kernels = [_kernel(*grid) for grid in sorted(facts.grids)]
        reasons = [reason for reason in kernels if reason is not None]
        vllm, sglang = by_marlin(facts, reasons)
        if reasons:  # SGLang falls back to the kernels of exllama
            plain = []
            if facts.dtype not in (torch.float16, None):
                plain.append("its plain GPTQ kernels need a float16 model")
            second = facts.section.get("checkpoint_format") == "gptq_v2"
            if second and any(not symmetric for *_, symmetric in facts.grids):
                plain.append("its plain GPTQ kernels read zero points as version 1")
            slow = ("by its plain GPTQ kernels: " + reasons[0],)
            sglang = Verdict(not plain, tuple(plain) or slow)
        return of_folder(facts, Verdict(not wrong, tuple(wrong or needs)), vllm, sglang)

    def _second(self, specs: Iterable[GridSpec]) -> bool:
        """Return whether zero points of a checkpoint with these grids are of version 2."""
        if self._version is not None:
            return self._version == 2
        return not all(spec.symmetric for spec in specs)


def _kernel(bits: int, group_size: int, symmetric: bool) -> str | None:
    """Say why vLLM does not run a grid; None if it does."""
    if not (symmetric and bits in (4, 8)):
        kind = "symmetric" if symmetric else "asymmetric"
        return f"GPTQ is symmetric with 4 or 8 bits there (TYPE_MAP), not {kind} with {bits}"
    return marlin(bits, group_size, zero_points=False)


def _zeros(packed: Tensor, bits: int, rows: int, *, second: bool) -> Tensor:
    """Return zero points, uint8 [groups, rows], of the second version or the first."""
    if second:
        return _core.unpack(packed, bits, rows)
    if bits == 3:
        return (_core.unpack(packed, bits, rows) + 1) % 8
    # GPTQModel also writes zero points 0, by a subtraction of whole words that borrows.
    ones = _core.pack(torch.ones(1, rows, dtype=torch.uint8), bits)
    return _core.unpack(packed + ones, bits, rows)


def _check_order(g_idx: Tensor, name: str, spec: GridSpec) -> None:
    size = len(g_idx) if spec.group_size == -1 else spec.group_size
    if g_idx.min() < 0 or g_idx.max() >= spec.groups(len(g_idx)):
        raise ValueError(
            f"{name}.g_idx names groups {int(g_idx.min())} to {int(g_idx.max())}, but there are "
            f"{spec.groups(len(g_idx))}"
        )
    if not torch.equal(g_idx, torch.arange(len(g_idx), dtype=torch.int32) // size):
        raise CannotReadError(
            f"{name}.g_idx puts channels into groups of {spec.group_size} in another order than "
            "theirs (desc_act without static groups), which mlcalib's grids cannot hold"
        )


def _override(dynamic: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return what ``dynamic`` says of a linear: of the first pattern that matches, like readers."""
    for pattern, values in dynamic.items():
        if re.match(pattern.removeprefix("+:").removeprefix("-:"), name):
            if pattern.startswith("-:"):
                raise ValueError(f"dynamic leaves out {name} ({pattern}), which has codes")
            return values  # type: ignore[no-any-return]
    return {}
