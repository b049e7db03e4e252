"""Which readers should load a checkpoint: what the rules of several formats share.

A format restates the rules for its own checkpoints in ``Format.verdicts``. Here are those of the
Marlin kernels, from the sources of vLLM
(``vllm/model_executor/layers/quantization/utils/marlin_utils.py``:
``MARLIN_SUPPORTED_GROUP_SIZES``, ``verify_marlin_supports_shape``,
``query_marlin_supported_quant_types``, ``marlin_padded_nk``) and SGLang
(``python/sglang/srt/layers/quantization/marlin_utils.py``).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mlcalib._core import GridSpec
from mlcalib.common.layer_names import fused_groups

_READ_ON = "2026-11-28"
"""The day on which the sources of readers without a version here were last read."""
READERS = {
    "transformers": "5.23",
    "vLLM": f"as of {_READ_ON}",
    "SGLang": f"as of {_READ_ON}",
    "llama.cpp": f"as of the package gguf 0.19 ({_READ_ON})",
}
"""Reader → the version whose rules are restated; no other file names these versions."""
MARLIN_GROUP_SIZES = (-1, 32, 64, 128)
_FLOATING = {"vLLM": ("indexer.wk", "indexer.weights_proj"), "SGLang": ("indexer.weights_proj",)}
"""Reader → linears that it makes without any quantization: those that choose tokens in
DeepSeek-V3.2 and GLM-5 (``wk_weights_proj`` with ``quant_config=None`` in
vllm/model_executor/models/deepseek_v2.py; ``weights_proj`` likewise in
sglang/srt/layers/attention/nsa)."""


@dataclass(frozen=True)
class Facts:
    """What readers' rules look at; known before quantization as well as from a checkpoint.

    Attributes:
        section: the ``quantization_config``; empty for a checkpoint that is not quantized.
        specs: quantized linear → its grid.
        shapes: quantized linear → (out, in).
        dtype: the model's.
        left: linears that are not quantized.
    """

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


Verdicts = dict[str, Verdict]
"""Reader → whether it should load a checkpoint; one for each of ``READERS``."""


def ordinary() -> Verdicts:
    """Return what each reader makes of a checkpoint that is not quantized."""
    wants = "llama.cpp reads GGUF: convert it with convert_hf_to_gguf.py"
    loads = dict.fromkeys(READERS, Verdict(True))
    return loads | {"llama.cpp": Verdict(False, (wants,))}


def cannot_tell(method: str) -> Verdicts:
    """Return what is known of readers of a layout of which no rules are known."""
    return dict.fromkeys(READERS, Verdict(None, (f"of {method!r} mlcalib cannot tell",)))


def of_folder(facts: Facts, transformers: Verdict, vllm: Verdict, sglang: Verdict) -> Verdicts:
    """Return the verdicts on a folder with safetensors.

    vLLM and SGLang load none whose linears they cannot fuse, or keep in floating point, and
    llama.cpp reads GGUF only.
    """
    if split := split_linears(facts):
        vllm = sglang = Verdict(False, tuple(split[:3]))
    vllm, sglang = (
        Verdict(False, (reason,)) if (reason := _floating(facts, reader)) else verdict
        for reader, verdict in (("vLLM", vllm), ("SGLang", sglang))
    )
    llama_cpp = _not_gguf(facts)
    return dict(zip(READERS, (transformers, vllm, sglang, llama_cpp), strict=True))


def _floating(facts: Facts, reader: str) -> str | None:
    """Say which quantized linears a reader keeps in floating point."""
    found = [name for name in facts.specs if name.endswith(_FLOATING[reader])]
    if not found:
        return None
    more = f" and {len(found) - 1} more" if found[1:] else ""
    return (
        f"{found[0]}{more} has to stay in floating point there: skip "
        r"'indexer\.(wk|weights_proj)$' (--skip)"
    )


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


def marlin_reasons(facts: Facts) -> list[str]:
    """Say which grids Marlin kernels do not run."""
    found = [
        marlin(bits, size, zero_points=not symmetric)
        for bits, size, symmetric in sorted(facts.grids)
    ]
    return [reason for reason in found if reason is not None]


def by_marlin(facts: Facts, reasons: list[str]) -> tuple[Verdict, Verdict]:
    """Return vLLM's and SGLang's verdicts, whose kernels are the same.

    Args:
        facts: of the checkpoint.
        reasons: why they will not load it.
    """
    if reasons:
        return Verdict(False, tuple(reasons)), Verdict(False, tuple(reasons))
    note = tile_note(facts)
    verdict = Verdict(True, (note,) if note else ())
    return verdict, verdict


def group_size_reasons(facts: Facts, known: tuple[int, ...]) -> list[str]:
    """Say which group sizes are not among those that GPTQModel has kernels for."""
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
