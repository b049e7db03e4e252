"""GGUF with K-quants and the older blocks of 32: one file, for llama.cpp and what is built on it.

``_gguf_blocks`` has the blocks byte by byte. Codes are exact in all types, and so are the weights
of those whose grids are ours: K-quants, Q4_0, Q5_0 and Q8_0. Q4_1 and Q5_1 have a float minimum
where our grid has an integer zero point z: m is -d·z rounded to float16, which moves a whole block
by up to 2⁻¹¹ of m; z is found again when such a block is read.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.common.errors import printable
from mlcalib.common.gguf_types import BLOCK_TYPES
from mlcalib.formats._gguf_blocks import block_bytes, packed, unpacked
from mlcalib.formats._gguf_check import inspect
from mlcalib.formats._gguf_file import check_config, write_gguf
from mlcalib.formats._gguf_reader import GgufTensors, open_gguf
from mlcalib.formats._gguf_tensors import expert_group
from mlcalib.formats._layout import check_groups, check_zeros, describe, stored_scale, tensor
from mlcalib.formats._readers import Facts, Verdict, Verdicts
from mlcalib.formats._section import Problem
from mlcalib.formats.base import Format, formats

TRANSFORMERS_READS = ("llama", "qwen2", "qwen3", "stablelm", "starcoder2")
"""Architectures of which transformers 5.24 reads files of mlcalib's with the same logits."""


def block_type(spec: GridSpec) -> str:
    """Return the type of GGUF that holds a grid.

    Raises:
        ValueError: none does; says which there are.
    """
    for name, kind in BLOCK_TYPES.items():
        if all(getattr(spec, field) == value for field, value in kind.options().items()):
            return name
    raise ValueError(
        f"gguf holds 4, 5 and 8 bits in groups of 32 (symmetric: Q4_0, Q5_0, Q8_0; asymmetric: "
        f"Q4_1, Q5_1), and K-quants of 2 to 6 bits in super-blocks of 256 (give a scheme, such as "
        f"Q4_K_M); given {describe(spec)}"
    )


@formats.register
class Gguf(Format):
    """Each linear in the type of its own grid; other tensors as the model holds them."""

    codes: ClassVar[str] = "weight"
    half_scales: ClassVar[bool] = True
    file: ClassVar[str] = "model.gguf"
    super_blocks: ClassVar[bool] = True
    stored: ClassVar[str] = "model.gguf, each linear in the type of its grid"
    loading: ClassVar[str] = (
        "```bash\nllama-cli -m THIS_FOLDER/model.gguf\n```\n\n"
        'or `AutoModelForCausalLM.from_pretrained("THIS_FOLDER", gguf_file="model.gguf")` of '
        "transformers, for the architectures that it reads."
    )

    def check(self, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse other grids, rows that are no whole number of blocks, and unlike experts."""
        for spec in specs.values():
            block_type(spec)
        check_groups(specs, shapes, whole_row=False)
        kinds: dict[str, str | None] = {}
        for name in shapes:
            kind = block_type(specs[name]) if name in specs else None
            if (group := expert_group(name)) and kinds.setdefault(group, kind) != kind:
                raise ValueError(
                    f"{name} would be {kind or 'left in floating point'}, and other experts beside "
                    f"it {kinds[group] or 'left in floating point'}: GGUF holds the experts of a "
                    "block in one tensor. Write overrides that take all of them, or none."
                )

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
        """Return that llama.cpp loads it; transformers by architecture, others with a warning."""
        architecture = facts.section.get("architecture")
        transformers = Verdict(True, ('from_pretrained(FOLDER, gguf_file="…")',))
        if architecture is not None and architecture not in TRANSFORMERS_READS:
            reason = f"its reader of GGUF gave no or other logits for {printable(architecture)}"
            transformers = Verdict(None, (reason,))
        experimental = ("its support of GGUF is experimental; give the original tokenizer",)
        return {
            "transformers": transformers,
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
        if spec.scale_dtype != torch.float16:
            raise ValueError(f"{name}: GGUF has float16 scales, the grid {scale.dtype}")
        return {f"{name}.weight": packed(name, kind, quantized)}

    def unpack(self, name: str, tensors: Mapping[str, Tensor], spec: GridSpec) -> QuantizedLinear:
        """Return codes and grid, exactly as packed.

        Raises:
            CannotReadError: a block of Q4_1 or Q5_1 has a minimum that is no multiple of its scale,
                as other tools write.
        """
        kind = block_type(spec)
        key = f"{name}.weight"
        found = tensors.get(key)
        if found is None or found.dim() != 2:
            raise ValueError(f"the file has no matrix {key}")
        size = block_bytes(kind)
        tensor(tensors, key, torch.uint8, (len(found), found.shape[1] // size * size))
        return unpacked(name, kind, found)

    def bits(self, spec: GridSpec, rows: int, columns: int) -> int:
        """Return the bits of a linear's blocks."""
        kind = block_type(spec)
        return 8 * rows * (columns // BLOCK_TYPES[kind].channels) * block_bytes(kind)

    def read_specs(
        self, config: Mapping[str, Any], linears: Iterable[str], scale_dtype: torch.dtype
    ) -> dict[str, GridSpec]:
        """Raise NotImplementedError: the tensors tell their types, there is no config."""
        raise NotImplementedError("a GGUF file has no quantization_config; its tensors have types")

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return float16, whatever the model's dtype."""
        super().scale_dtype(model_dtype)
        return torch.float16
