"""Types of GGUF's blocks, and which of them llama.cpp's own quantizer gives each linear.

Restated from llama.cpp: ``ggml/src/ggml-common.h`` (blocks) and ``llama_tensor_get_type_impl`` and
``tensor_type_fallback`` in ``src/llama-quant.cpp`` (mixes).
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BlockType:
    """The grid of a type; see ``GridSpec`` for the fields.

    Attributes:
        bits: of a code.
        symmetric: whether codes count from the middle; the others have minima.
        group_size: input channels that share a scale.
        super_block: input channels whose scales share one; 0 where each group has its own.
        scale_bits: of the codes of scales and minima in a super-block.
    """

    bits: int
    symmetric: bool
    group_size: int = 32
    super_block: int = 0
    scale_bits: int = 0

    @property
    def channels(self) -> int:
        """Input channels of a block."""
        return self.super_block or self.group_size

    def options(self) -> dict[str, Any]:
        """Return the options of a quantizer for this grid."""
        return vars(self).copy()


BLOCK_TYPES = {
    "Q4_0": BlockType(4, symmetric=True),
    "Q4_1": BlockType(4, symmetric=False),
    "Q5_0": BlockType(5, symmetric=True),
    "Q5_1": BlockType(5, symmetric=False),
    "Q8_0": BlockType(8, symmetric=True),
    "Q2_K": BlockType(2, False, 16, 256, 4),
    "Q3_K": BlockType(3, True, 16, 256, 6),
    "Q4_K": BlockType(4, False, 32, 256, 6),
    "Q5_K": BlockType(5, False, 32, 256, 6),
    "Q6_K": BlockType(6, True, 16, 256, 8),
}

MIXES = {
    "Q2_K": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
}
"""Name of a mix → the type of most of its linears."""

_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


@dataclass(frozen=True)
class MixedModel:
    """What llama.cpp's choice depends on.

    Attributes:
        architecture: llama.cpp's name.
        layers: blocks of the model.
        heads: attention heads.
        key_heads: heads of keys and values.
        experts: of a block; 0 or 1 in a dense model.
    """

    architecture: str
    layers: int
    heads: int
    key_heads: int
    experts: int = 0

    def type_of(self, mix: str, name: str, columns: int) -> str:
        """Return the type that a mix gives a linear of a block.

        Args:
            mix: one of ``MIXES``.
            name: what GGUF calls the weight, e.g. ``blk.0.attn_v.weight``.
            columns: its input channels. Where blocks of 256 do not divide them, a type with blocks
                of 32 takes the place, as in llama.cpp.

        Raises:
            ValueError: the weight is in no block.
        """
        found = re.match(r"blk\.(\d+)\.", name)
        if found is None:
            raise ValueError(f"{name} is in no block, of which mixes choose the types")
        kind = self._choice(mix, name, int(found[1]))
        return kind if columns % BLOCK_TYPES[kind].channels == 0 else _FALLBACK[kind]

    def _choice(self, mix: str, name: str, layer: int) -> str:
        if any(part in name for part in _VALUES):
            return self._values(mix, name, layer)
        if "attn_k.weight" in name and self.experts == 8:
            return "Q8_0"
        if "ffn_down" in name:
            return self._down(mix, layer)
        if "attn_output.weight" in name:
            return self._output(mix)
        return MIXES[mix]

    def _values(self, mix: str, name: str, layer: int) -> str:
        if self.experts == 8:
            return "Q8_0"
        kind = MIXES[mix]
        if mix == "Q2_K":
            kind = "Q4_K" if self.heads // self.key_heads >= 4 else "Q3_K"
        elif mix == "Q3_K_M":
            kind = "Q5_K" if layer < 2 else "Q4_K"
        elif mix == "Q3_K_L":
            kind = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and self._more_bits(layer):
            kind = "Q6_K"
        elif mix == "Q4_K_S" and layer < 4:
            kind = "Q5_K"
        large = self.layers == 80 and self.architecture in ("llama", "qwen2")
        return "Q5_K" if large and kind in ("Q3_K", "Q4_K") else kind

    def _down(self, mix: str, layer: int) -> str:
        if self.architecture == "falcon" and mix in ("Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"):
            return self._down_of_falcon(mix, layer)
        kind = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, MIXES[mix])
        early = layer < self.layers // (16 if mix == "Q3_K_M" else 8)
        if mix in ("Q3_K_M", "Q4_K_S") and early:
            kind = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and self._more_bits(layer):
            kind = "Q6_K"
        return kind

    def _down_of_falcon(self, mix: str, layer: int) -> str:
        least, more, first = {
            "Q3_K_M": ("Q3_K", "Q4_K", "Q5_K"),
            "Q3_K_L": ("Q4_K", "Q4_K", "Q4_K"),
            "Q4_K_S": ("Q4_K", "Q4_K", "Q4_K"),
            "Q4_K_M": ("Q4_K", "Q5_K", "Q6_K"),
        }[mix]
        if layer < self.layers // 16:
            return first
        return more if self._more_bits(layer) else least

    def _output(self, mix: str) -> str:
        if self.architecture == "falcon":
            return "Q4_K" if mix == "Q3_K_L" else MIXES[mix]
        if self.experts == 8:
            raised = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
            return "Q5_K" if mix in raised else MIXES[mix]
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, MIXES[mix])

    def _more_bits(self, layer: int) -> bool:
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
