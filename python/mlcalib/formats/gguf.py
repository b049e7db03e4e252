r"""GGUF with the types Q4_0, Q4_1 and Q8_0: one file, read by llama.cpp and what is built on it.

Checked against llama.cpp (``ggml/src/ggml-quants.c``; the package gguf 0.19, ``gguf/quants.py``).
Blocks of 32 input channels, row after row, scale d and minimum m in float16, and with c a code:

=====  ====================  ==============  =======================================================
Q4_0   4 bits, symmetric     d · (c - 8)     d, then 16 bytes: codes 0 to 15 in the low nibbles
Q8_0   8 bits, symmetric     d · (c - 128)   d, then 32 signed bytes
Q4_1   4 bits, asymmetric    d · c + m       d, m, then nibbles as in Q4_0
=====  ====================  ==============  =======================================================

Codes and scales are exact in all three, and so are the weights of Q4_0 and Q8_0, whose grids are
ours. Q4_1 has a float minimum where our grid has an integer zero point z: m is -d·z rounded to
float16, which moves a whole block by up to 2⁻¹¹ of m; z is found again when such a block is read.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.errors import CannotReadError
from mlcalib.formats._gguf_check import inspect
from mlcalib.formats._gguf_file import check_config, write_gguf
from mlcalib.formats._gguf_reader import GgufTensors, open_gguf
from mlcalib.formats._layout import check_groups, check_zeros, stored_scale, tensor
from mlcalib.formats._readers import Facts, Verdict, Verdicts
from mlcalib.formats._section import Problem
from mlcalib.formats.base import Format, formats

BLOCK = 32
_TYPES = {(4, True): "Q4_0", (4, False): "Q4_1", (8, True): "Q8_0"}
_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def block_type(spec: GridSpec) -> str:
    """Return the type of GGUF that holds a grid.

    Raises:
        ValueError: none does; says which there are.
    """
    name = _TYPES.get((spec.bits, spec.symmetric))
    if name is None or spec.group_size != BLOCK:
        kind = "symmetric" if spec.symmetric else "asymmetric"
        raise ValueError(
            f"gguf holds 4 bits (symmetric: Q4_0, else Q4_1) and 8 bits symmetric (Q8_0) in groups "
            f"of 32; given {spec.bits} bits, {kind}, group_size {spec.group_size}"
        )
    return name


@formats.register
class Gguf(Format):
    """Q4_0, Q4_1 and Q8_0, each linear by its own grid; other tensors as the model holds them."""

    codes: ClassVar[str] = "weight"
    half_scales: ClassVar[bool] = True
    file: ClassVar[str] = "model.gguf"
    stored: ClassVar[str] = "model.gguf, packed (Q4_0, Q4_1 or Q8_0)"
    loading: ClassVar[str] = (
        "```bash\nllama-cli -m THIS_FOLDER/model.gguf\n```\n\n"
        'or `AutoModelForCausalLM.from_pretrained("THIS_FOLDER", gguf_file="model.gguf")` of '
        "transformers."
    )

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse other grids, and rows that are no whole number of blocks."""
        for spec in specs.values():
            block_type(spec)
        check_groups(specs, shapes, whole_row=False)

    def check_model(self, config: Any, architecture: str, tokenizer: Any) -> None:
        """Refuse architectures, options and tokenizers that cannot be written right."""
        check_config(config, architecture, tokenizer)

    def write_file(
        self,
        folder: Path,
        config: Any,
        architecture: str,
        tokenizer: Any,
        tensors: Iterable[tuple[str, Tensor | QuantizedLinear]],
    ) -> None:
        """See ``Format.write_file``."""
        write_gguf(folder / self.file, config, architecture, tokenizer, self._blocks(tensors))

    def open_file(self, file: Path) -> GgufTensors:
        """See ``Format.open_file``; files of llama.cpp and other tools too."""
        return open_gguf(file)

    def check_file(self, file: Path) -> tuple[Facts, list[Problem]]:
        """See ``Format.check_file``."""
        return inspect(file)

    def verdicts(self, facts: Facts) -> Verdicts:
        """Return that all readers load it; vLLM and SGLang with a warning."""
        experimental = ("its support of GGUF is experimental; give the original tokenizer",)
        return {
            "transformers": Verdict(True, ('from_pretrained(FOLDER, gguf_file="…")',)),
            "vLLM": Verdict(True, experimental),
            "SGLang": Verdict(True, experimental),
            "llama.cpp": Verdict(True),
        }

    def _blocks(
        self, tensors: Iterable[tuple[str, Tensor | QuantizedLinear]]
    ) -> Iterator[tuple[str, Tensor, str | None]]:
        for name, value in tensors:
            if isinstance(value, QuantizedLinear):
                packed = self.pack(name, value)[f"{name}.weight"]
                yield f"{name}.weight", packed, block_type(value.grid.spec)
            else:
                yield name, value, None

    def quantization_config(
        self, specs: Mapping[str, GridSpec], order: Any, ignore: list[str]
    ) -> None:
        """Return None: each tensor in the file tells its type."""

    def pack(self, name: str, quantized: QuantizedLinear) -> dict[str, Tensor]:
        """Return ``name.weight``, uint8 [out, bytes of a row]."""
        grid, codes = quantized.grid, quantized.codes
        spec, (rows, columns) = grid.spec, codes.shape
        self.check({name: spec}, {name: (rows, columns)})
        kind = block_type(spec)
        check_zeros(name, grid)
        scale = stored_scale(name, grid)
        if scale.dtype != torch.float16:
            raise ValueError(f"{name}: GGUF has float16 scales, the grid {scale.dtype}")
        parts = [_bytes(scale)]
        if kind == "Q4_1":
            low = (-grid.scale * grid.zero).half()
            if not low.isfinite().all():
                raise ValueError(f"{name}: the minimum of a block is not finite in float16")
            parts.append(_bytes(low))
        blocks = codes.reshape(rows, -1, BLOCK)
        if kind == "Q8_0":
            parts.append(blocks ^ 128)  # c - 128 as a signed byte
        else:
            parts.append(blocks[..., :16] | blocks[..., 16:] << 4)
        return {f"{name}.weight": torch.cat(parts, -1).reshape(rows, -1)}

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed.

        Raises:
            CannotReadError: a block of Q4_1 has a minimum that is no multiple of its scale, as
                other tools write.
        """
        kind = block_type(spec)
        key = f"{name}.weight"
        found = tensors.get(key)
        if found is None or found.dim() != 2:
            raise ValueError(f"the file has no matrix {key}")
        rows, groups = len(found), found.shape[1] // _BYTES[kind]
        tensor(tensors, key, torch.uint8, (rows, groups * _BYTES[kind]))
        blocks = found.reshape(rows, groups, _BYTES[kind])
        head = 4 if kind == "Q4_1" else 2
        scale = _halves(blocks[..., :2])
        body = blocks[..., head:]
        codes = body ^ 128 if kind == "Q8_0" else torch.cat([body & 15, body >> 4], -1)
        zero = torch.full((rows, groups), 1 << (spec.bits - 1), dtype=torch.uint8)
        if kind == "Q4_1":
            zero = _zeros(name, scale, _halves(blocks[..., 2:4]))
        spec = GridSpec(spec.bits, BLOCK, spec.symmetric, scale_dtype=torch.float16)
        return QuantizedLinear(codes.reshape(rows, -1).contiguous(), Grid(scale, zero, spec))

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Raise NotImplementedError: the tensors tell their types, there is no config."""
        raise NotImplementedError("a GGUF file has no quantization_config; its tensors have types")

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return float16, whatever the model's dtype."""
        super().scale_dtype(model_dtype)
        return torch.float16


def _bytes(values: Tensor) -> Tensor:
    """Return float16 [rows, groups] as little-endian bytes [rows, groups, 2]."""
    # contiguous() would leave the strides of a single row or block, which view() looks at.
    plain = values.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).reshape(*values.shape, 2)


def _halves(parts: Tensor) -> Tensor:
    """Return bytes [rows, groups, 2] as float32 [rows, groups]."""
    plain = parts.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.float16).squeeze(-1).float()


def _zeros(name: str, scale: Tensor, low: Tensor) -> Tensor:
    zero = (-low / scale).round().nan_to_num(0, 0, 0)
    if ((zero < 0) | (zero > 15)).any() or ((-scale * zero).half().float() != low).any():
        raise CannotReadError(
            f"{name}: a block of Q4_1 has a minimum that is no multiple of its scale, which "
            "mlcalib's grids, with integer zero points, cannot hold"
        )
    return zero.byte()
