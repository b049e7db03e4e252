"""AWQ layout of AutoAWQ, version "gemm": read by vLLM, SGLang, GPTQModel and transformers with it.

Checked against the sources of AutoAWQ (``awq/modules/linear/gemm.py``, ``WQLinear_GEMM``;
``awq/utils/packing_utils.py``), GPTQModel 7.7 (``gptqmodel/nn_modules/qlinear/torch_awq.py``) and
vLLM (``vllm/model_executor/layers/quantization/auto_awq.py``). Readers' rules are those of
transformers 5.23 (``quantizers/quantizer_awq.py``), GPTQModel, vLLM (``get_quant_method``) and
SGLang (``python/sglang/srt/layers/quantization/awq.py``). Of a linear [out, in], 4 bits:

==========  =====================  =======================================================
qweight     int32 [in, out/8]      codes, along *out*; nibble i of a word is channel ORDER[i]
qzeros      int32 [groups, out/8]  zero points, likewise, as they are
scales      dtype [groups, out]    the model's dtype; float16 for a float32 model
==========  =====================  =======================================================

Codes of any quantizer fit: AWQ's own scales are folded into the model before. Zero points are
always written; a symmetric grid's are all 8.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.formats._layout import (
    SCALE_DTYPES,
    by_grid,
    check_groups,
    check_words,
    describe,
    stored_scale,
    tensor,
    with_dtype,
)
from mlcalib.formats._loading import by_transformers
from mlcalib.formats._readers import (
    MARLIN_GROUP_SIZES,
    Facts,
    Verdict,
    Verdicts,
    by_marlin,
    group_size_reasons,
    of_folder,
)
from mlcalib.formats._section import Problem, check_flags, check_keys, check_sizes
from mlcalib.formats.base import Format, Shapes, formats

if TYPE_CHECKING:
    from mlcalib._core import Order

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)
_GPTQMODEL_GROUP_SIZES = (-1, 16, 32, 64, 128)
_KEYS = {
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "zero_point", "version",
    "format", "modules_to_not_convert", "lm_head", "backend", "do_fuse", "fuse_max_seq_len", "sym",
    "desc_act",
    "modules_to_fuse", "exllama_config", "meta", "pack_dtype", "dynamic", "checkpoint_format",
}  # fmt: skip


@formats.register
class Awq(Format):
    """4 bits, in groups that divide the input channels or in whole rows; one grid for all."""

    codes: ClassVar[str] = "qweight"
    half_scales: ClassVar[bool] = True
    middle_zeros: ClassVar[bool] = True
    config_files: ClassVar[tuple[str, ...]] = ("quant_config.json", "quantize_config.json")
    stored: ClassVar[str] = "packed (AWQ layout, gemm)"
    loading: ClassVar[str] = by_transformers("gptqmodel")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Awq":
        """See ``Format.of_config``.

        Raises:
            CannotReadError: another version than gemm, whose packing differs.
        """
        version = str(config.get("version") or config.get("format") or "gemm").lower()
        if version != "gemm":
            raise CannotReadError(f"AWQ version {version!r} cannot be read; expected 'gemm'")
        return cls()

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse other bits than 4, several grids, short last groups and words not full."""
        if len({(spec.bits, spec.group_size) for spec in specs.values()}) > 1:
            found = ", ".join(f"{describe(spec)} ({names[0]})" for spec, names in by_grid(specs))
            raise ValueError(
                f"awq holds linears of one group_size and 4 bits only; found {found}. Quantize on "
                "one grid, or save with --format gptq or compressed-tensors."
            )
        for name, spec in specs.items():
            if spec.bits != 4:
                raise ValueError(f"awq holds 4 bits, not {spec.bits} ({name})")
        check_groups(specs, shapes)
        check_words("awq", specs, shapes, rows=False)

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: "Order", ignore: list[str]
    ) -> dict[str, Any]:
        """Return the section; readers match ``modules_to_not_convert`` anywhere in a name."""
        spec = next(iter(specs.values()))
        return {
            "quant_method": "awq",
            "bits": spec.bits,
            "group_size": spec.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ignore or None,
            "lm_head": "lm_head" in specs,
        }

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return qweight, qzeros and scales."""
        grid, codes = quantized.grid, quantized.codes
        self.check({name: grid.spec}, {name: (codes.shape[0], codes.shape[1])})
        return {
            f"{name}.qweight": _packed(codes.t()),
            f"{name}.qzeros": _packed(grid.zero.t()),
            f"{name}.scales": stored_scale(name, grid).t().contiguous(),
        }

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed; the scale dtype is the tensor's own."""
        qweight = tensors.get(f"{name}.qweight")
        if qweight is None or qweight.dim() != 2:
            raise ValueError(f"the checkpoint has no matrix {name}.qweight")
        columns, words = qweight.shape
        check_groups({name: spec}, {name: (8 * words, columns)})
        groups = spec.groups(columns)
        tensor(tensors, f"{name}.qweight", torch.int32, (columns, words))
        zeros = tensor(tensors, f"{name}.qzeros", torch.int32, (groups, words))
        scale = tensor(tensors, f"{name}.scales", SCALE_DTYPES, (groups, 8 * words))
        grid = Grid(scale.float().t().contiguous(), _unpacked(zeros), with_dtype(spec, scale.dtype))
        return QuantizedLinear(_unpacked(qweight), grid)

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Return the grids of a section of mlcalib, AutoAWQ or GPTQModel."""
        bits = config.get("bits", config.get("w_bit"))
        size = config.get("group_size", config.get("q_group_size"))
        if bits != 4 or not isinstance(size, int) or config.get("zero_point") is False:
            raise CannotReadError(
                "expected 4 bits, a group_size and zero_point true in quantization_config, found "
                f"{bits!r}, {size!r}, {config.get('zero_point')!r}"
            )
        return dict.fromkeys(linears, GridSpec(bits, size, scale_dtype=scale_dtype))

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return the model's dtype, or float16 for float32, which readers have no kernel for."""
        dtype = super().scale_dtype(model_dtype)
        return torch.float16 if dtype == torch.float32 else dtype

    def check_section(self, config: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield keys that no reader knows, and values that vLLM refuses."""
        yield from check_keys(config, _KEYS)
        yield from check_sizes(config)
        yield from check_flags(config, ("zero_point",))

    def stored_shape(self, name: str, shapes: Shapes) -> tuple[int, int] | None:
        """Return (out, in) by scales and codes."""
        scales, codes = shapes.get(f"{name}.scales", ()), shapes.get(f"{name}.qweight", ())
        return (scales[1], codes[0]) if len(scales) == len(codes) == 2 else None

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return who should load it; see the module's docstring for the rules."""
        wrong = group_size_reasons(facts, _GPTQMODEL_GROUP_SIZES)
        transformers = Verdict(not wrong, tuple(wrong) or ("with gptqmodel installed",))
        sizes = sorted({size for _, size, _ in facts.grids if size not in MARLIN_GROUP_SIZES})
        if sizes:
            plain = _by_plain_kernels(facts, sizes[0])
            return of_folder(facts, transformers, plain, plain)
        return of_folder(facts, transformers, *by_marlin(facts, []))


def _by_plain_kernels(facts: Facts, group_size: int) -> Verdict:
    """Return what vLLM and SGLang make of groups that Marlin has no kernels for.

    ``AWQConfig.get_supported_act_dtypes`` of both is float16 alone.
    """
    why = f"Marlin has no groups of {group_size}"
    if facts.dtype == torch.bfloat16:
        reason = f"{why}, and its plain AWQ kernels run no bfloat16 model; give it --dtype float16"
        return Verdict(False, (reason,))
    given = "" if facts.dtype in (torch.float16, None) else "; give it --dtype float16"
    return Verdict(True, (f"by its plain AWQ kernels (float16): {why}{given}",))


def _packed(codes: Tensor) -> Tensor:
    """Return words [rows, columns/8] of codes [rows, columns]."""
    rows, columns = codes.shape
    shuffled = codes.reshape(rows, columns // 8, 8)[:, :, ORDER].reshape(rows, columns)
    return _core.pack(shuffled.contiguous(), 4)


def _unpacked(words: Tensor) -> Tensor:
    """Return codes [8 · columns, rows] of words [rows, columns]."""
    rows, columns = words.shape
    shuffled = _core.unpack(words.contiguous(), 4, 8 * columns)
    codes = shuffled.reshape(rows, columns, 8)[:, :, _INVERSE].reshape(rows, 8 * columns)
    return codes.t().contiguous()
