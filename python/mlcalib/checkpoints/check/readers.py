"""Which readers should load a checkpoint: their rules, restated from their sources.

- transformers 5.23: ``quantizers/quantizer_{compressed_tensors,gptq,awq}.py``; optimum 2.3
  ``optimum/gptq/quantizer.py``; GPTQModel 7.7 ``gptqmodel/nn_modules/qlinear/torch.py`` and
  ``torch_awq.py``, whose lists of bits and group sizes these are.
- vLLM: ``vllm/model_executor/layers/quantization/auto_gptq.py`` (``TYPE_MAP``), ``auto_awq.py``
  (``get_quant_method``), ``compressed_tensors/schemes/compressed_tensors_wNa16.py`` and
  ``utils/marlin_utils.py`` (``MARLIN_SUPPORTED_GROUP_SIZES``, ``verify_marlin_supports_shape``,
  ``query_marlin_supported_quant_types``, ``marlin_padded_nk``).
- SGLang: ``python/sglang/srt/layers/quantization/{gptq,awq,marlin_utils}.py`` and
  ``compressed_tensors/schemes/compressed_tensors_wNa16.py``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mlcalib._core import GridSpec
from mlcalib.common.layer_names import fused_groups

READERS = ("transformers", "vLLM", "SGLang", "llama.cpp")
MARLIN_GROUP_SIZES = (-1, 32, 64, 128)
_GPTQMODEL_GROUP_SIZES = {
    "gptq": (-1, 16, 32, 64, 128, 256, 512, 1024),
    "awq": (-1, 16, 32, 64, 128),
}


@dataclass(frozen=True)
class Facts:
    """What readers' rules look at; known before quantization as well as from a checkpoint.

    Attributes:
        method: ``compressed-tensors``, ``gptq``, ``awq``, ``gguf``, another quant_method, or "".
        section: the ``quantization_config``.
        specs: quantized linear → its grid.
        shapes: quantized linear → (out, in).
        dtype: the model's.
        left: linears that are not quantized.
    """

    method: str
    section: Mapping[str, Any] = field(default_factory=dict)
    specs: Mapping[str, GridSpec] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    left: Collection[str] = ()

    @property
    def grids(self) -> set[tuple[int, int, bool]]:
        """Bits, group size and symmetry of all linears."""
        return {(spec.bits, spec.group_size, spec.symmetric) for spec in self.specs.values()}


@dataclass(frozen=True)
class Verdict:
    """Whether a reader should load a checkpoint.

    Attributes:
        loads: whether; None if mlcalib does not know.
        reasons: why not, or what it takes.
    """

    loads: bool | None
    reasons: tuple[str, ...] = ()


def verdicts(facts: Facts) -> dict[str, Verdict]:
    """Return what each reader makes of a checkpoint."""
    if not facts.method:
        wants = "llama.cpp reads GGUF: convert it with convert_hf_to_gguf.py"
        return {
            name: Verdict(name != "llama.cpp", (wants,) if name == "llama.cpp" else ())
            for name in READERS
        }
    if facts.method not in _RULES:
        return dict.fromkeys(READERS, Verdict(None, (f"of {facts.method!r} mlcalib cannot tell",)))
    found = dict(zip(READERS, _RULES[facts.method](facts), strict=True))
    if facts.method != "gguf" and (split := split_linears(facts)):
        found |= dict.fromkeys(("vLLM", "SGLang"), Verdict(False, tuple(split[:3])))
    return found


def layout(section: Mapping[str, Any]) -> str:
    """Return the quant_method, with the format of compressed-tensors other than pack-quantized."""
    method = str(section.get("quant_method", ""))
    form = section.get("format", "pack-quantized")
    other = method == "compressed-tensors" and form != "pack-quantized"
    return f"{method} {form}" if other else method


def split_linears(facts: Facts) -> list[str]:
    """Say which linears that vLLM and SGLang fuse (``packed_modules_mapping``) cannot be fused."""
    specs, told = facts.specs, []
    for members in fused_groups(sorted([*specs, *facts.left])):
        grids = {
            (spec.bits, spec.group_size, spec.symmetric) if (spec := specs.get(name)) else None
            for name in members
        }
        if len(grids) > 1:
            found = ", ".join(
                "floating point" if grid is None else f"{grid[0]} bits in groups of {grid[1]}"
                for grid in sorted(grids, key=str)
            )
            names = ", ".join(members[:3]) + (" …" if members[3:] else "")
            told.append(f"{names} are fused there, but are on different grids: {found}")
    return told


def marlin(bits: int, group_size: int, *, zero_points: bool) -> str | None:
    """Say why vLLM's Marlin kernels do not run a grid; None if they do (compute capability 7.5)."""
    if bits not in ((4,) if zero_points else (4, 8)):
        return (
            f"Marlin kernels have no {bits} bits {'with' if zero_points else 'without'} zero points"
        )
    if group_size not in MARLIN_GROUP_SIZES:
        return f"Marlin kernels have groups of -1, 32, 64 and 128, not {group_size}"
    return None


def tile_note(facts: Facts) -> str | None:
    """Say which linears Marlin's tiles do not fit: newer versions pad them, older refuse."""
    fused: dict[str, tuple[int, int]] = dict(facts.shapes)
    for members in fused_groups(facts.shapes):
        if ".experts." not in members[0]:
            rows = sum(facts.shapes[name][0] for name in members)
            fused[members[0]] = (rows, facts.shapes[members[0]][1])
            for name in members[1:]:
                del fused[name]
    misfits = [
        name
        for name, (rows, columns) in fused.items()
        if (rows % 64 or columns % 128) and (rows % 128 or columns % 64)
    ]
    if not misfits:
        return None
    rows, columns = fused[misfits[0]]
    more = f" and {len(misfits) - 1} more" if misfits[1:] else ""
    return (
        f"Marlin's tiles are 64 output by 128 input channels, which {misfits[0]} ({rows} by "
        f"{columns}){more} does not fill: a version that pads them is needed"
    )


def _compressed_tensors(facts: Facts) -> tuple[Verdict, ...]:
    wrong, notes = [], ["with compressed-tensors installed"]
    grids = facts.grids
    asymmetric = any(not symmetric for _, _, symmetric in grids)
    if asymmetric and not facts.section.get("dequantize"):
        wrong.append(
            'compressed-tensors 0.18 to 0.20 fail on packed zero points; add "dequantize": true to '
            "quantization_config"
        )
    if asymmetric and len(grids) > 1:
        wrong.append("it reads asymmetric linears on several grids as if all had the first")
    transformers = Verdict(not wrong, tuple(wrong or notes))
    return (transformers, *_vllm_like(facts, _marlin_reasons(facts)), _not_gguf(facts))


def _gptq(facts: Facts) -> tuple[Verdict, ...]:
    wrong = _group_size_reasons(facts, "gptq")
    if len(facts.grids) > 1:
        wrong.append("optimum makes all linears by one grid and knows no dynamic")
    needs = ["with gptqmodel and optimum installed"]
    if (
        4,
        -1,
        False,
    ) in facts.grids:  # transform_cpu in gptqmodel/nn_modules/qlinear/torch_fused.py
        needs.append("on CPUs GPTQModel 7.6 picks a kernel here that takes zero points for 8")
    transformers = Verdict(not wrong, tuple(wrong or needs))
    reasons = [
        reason
        for bits, size, symmetric in sorted(facts.grids)
        if (reason := _gptq_kernel(bits, size, symmetric=symmetric)) is not None
    ]
    vllm, sglang = _vllm_like(facts, reasons)
    if reasons:  # SGLang falls back to the kernels of exllama
        plain = []
        if facts.dtype not in (torch.float16, None):
            plain.append("its plain GPTQ kernels need a float16 model")
        if any(not symmetric for *_, symmetric in facts.grids) and (
            facts.section.get("checkpoint_format") == "gptq_v2"
        ):
            plain.append("its plain GPTQ kernels read zero points as version 1")
        slow = ("by its plain GPTQ kernels: " + reasons[0],)
        sglang = Verdict(not plain, tuple(plain) or slow)
    return transformers, vllm, sglang, _not_gguf(facts)


def _gptq_kernel(bits: int, group_size: int, *, symmetric: bool) -> str | None:
    if not (symmetric and bits in (4, 8)):
        kind = "symmetric" if symmetric else "asymmetric"
        return f"GPTQ is symmetric with 4 or 8 bits there (TYPE_MAP), not {kind} with {bits}"
    return marlin(bits, group_size, zero_points=False)


def _awq(facts: Facts) -> tuple[Verdict, ...]:
    wrong = _group_size_reasons(facts, "awq")
    transformers = Verdict(not wrong, tuple(wrong) or ("with gptqmodel installed",))
    sizes = sorted({size for _, size, _ in facts.grids if size not in MARLIN_GROUP_SIZES})
    if sizes:
        slow = (f"by its plain AWQ kernels (float16): Marlin has no groups of {sizes[0]}",)
        return transformers, Verdict(True, slow), Verdict(True, slow), _not_gguf(facts)
    return (transformers, *_vllm_like(facts, []), _not_gguf(facts))


def _gguf(facts: Facts) -> tuple[Verdict, ...]:
    file = 'from_pretrained(FOLDER, gguf_file="…")'
    experimental = ("its support of GGUF is experimental; give the original tokenizer",)
    return (
        Verdict(True, (file,)),
        Verdict(True, experimental),
        Verdict(True, experimental),
        Verdict(True),
    )


def _int8(facts: Facts) -> tuple[Verdict, ...]:
    """W8A8: ``cutlass_scaled_mm`` of vLLM's ``_custom_ops.py``, ``int8_scaled_mm`` of SGLang."""
    odd = [name for name, shape in facts.shapes.items() if shape[0] % 16 or shape[1] % 16]
    want = f"its int8 kernels want channels in multiples of 16, unlike {odd[0]}" if odd else ""
    return (
        Verdict(True, ("with compressed-tensors installed",)),
        Verdict(True, (f"by a slower Triton kernel: {want}",) if odd else ()),
        Verdict(not odd, (want,) if odd else ()),
        _not_gguf(facts),
    )


_RULES = {
    "compressed-tensors": _compressed_tensors,
    "compressed-tensors int-quantized": _int8,
    "gptq": _gptq,
    "awq": _awq,
    "gguf": _gguf,
}
LAYOUTS = tuple(method for method in _RULES if method != "gguf")
"""What ``check`` knows of folders: quant_method, and what else tells layouts apart."""


def _marlin_reasons(facts: Facts) -> list[str]:
    found = [
        marlin(bits, size, zero_points=not symmetric)
        for bits, size, symmetric in sorted(facts.grids)
    ]
    return [reason for reason in found if reason is not None]


def _vllm_like(facts: Facts, reasons: list[str]) -> tuple[Verdict, Verdict]:
    """Return vLLM's and SGLang's verdicts, whose kernels are the same."""
    if reasons:
        return Verdict(False, tuple(reasons)), Verdict(False, tuple(reasons))
    note = tile_note(facts)
    verdict = Verdict(True, (note,) if note else ())
    return verdict, verdict


def _group_size_reasons(facts: Facts, method: str) -> list[str]:
    known = _GPTQMODEL_GROUP_SIZES[method]
    return [
        f"GPTQModel has groups of {', '.join(map(str, known))}, not {size}"
        for size in sorted({size for _, size, _ in facts.grids})
        if size not in known
    ]


def _not_gguf(facts: Facts) -> Verdict:
    holds = all(
        size == 32 and (bits == 4 or (bits == 8 and symmetric))
        for bits, size, symmetric in facts.grids
    )
    whole = all(columns % 32 == 0 for _, columns in facts.shapes.values())
    hint = "; mlcalib convert --format gguf holds the same codes" if holds and whole else ""
    return Verdict(False, (f"it reads GGUF only{hint}",))
