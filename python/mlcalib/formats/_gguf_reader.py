"""GGUF files read back: names, hyperparameters and the order of rows as transformers has them.

The inverse of ``_gguf_file``; for files of llama.cpp and other tools too.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlcalib._core import GridSpec
from mlcalib.common.errors import CannotReadError, named, printable
from mlcalib.common.gguf_read import GgufTensor, read_gguf
from mlcalib.common.optional import optional
from mlcalib.formats._file import FileTensors
from mlcalib.formats._gguf_blocks import GGUF_GRIDS
from mlcalib.models import GgufArchitecture, gguf_architectures

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class GgufTensors(FileTensors):
    """See ``FileTensors``.

    Attributes:
        config: the model's, of transformers.
        tensors: name in transformers → tensor of the file.
        specs: linear whose codes can be read → its grid.
        dtype: the floating type of its matrices; float32 where some were quantized in a type whose
            codes are not read, which are dequantized in it.
        rotates_pairs: see ``GgufArchitecture``.
    """

    config: Any
    tensors: dict[str, GgufTensor]
    specs: dict[str, GridSpec]
    dtype: torch.dtype
    rotates_pairs: bool

    def blocks(self, name: str) -> Tensor:
        """Return the blocks of a linear, uint8 [out, bytes of a row], in transformers' order."""
        return self._ordered(name, torch.from_numpy(self.tensors[name].data.copy()))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that holds no codes, or their values in float32."""
        gguf = optional("gguf", "gguf", "reading a GGUF file")
        found = self.tensors[name]
        kind = found.tensor_type.name
        if kind not in _PLAIN:
            return self._ordered(
                name, torch.from_numpy(gguf.dequantize(found.data, found.tensor_type))
            )
        values = torch.from_numpy(found.data.copy())
        return self._ordered(name, values.view(torch.bfloat16) if kind == "BF16" else values)

    def _ordered(self, name: str, values: Tensor) -> Tensor:
        """Put rows of q and k from the pairs that llama.cpp rotates back into halves."""
        heads = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }.get(name.split(".")[-2] if "." in name else "")
        if not self.rotates_pairs or heads is None:
            return values
        pairs = values.reshape(heads, -1, 2, *values.shape[1:])
        return pairs.transpose(1, 2).reshape(values.shape)


def open_gguf(file: Path) -> GgufTensors:
    """Look at a GGUF file, without reading its tensors.

    Raises:
        CannotReadError: it has linears in blocks whose codes no format here holds (IQ4_XS, …).
        ValueError: it is damaged, or lacks tensors of its architecture.
        NotImplementedError: an architecture, or scaled positions, that are not read yet.
        ImportError: the package gguf is missing.
    """
    reader = read_gguf(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    values = reader.values
    name, known = _architecture(file, values, stored)
    _check_blocks(file, values.get(f"{known.name}.block_count"), stored)
    with _as_transformers_reads(file):
        config = _config(file, name, known, values, stored)
        shapes = _state_shapes(config)
    names = known.tensor_names(config.num_hidden_layers)
    tensors: dict[str, GgufTensor] = {}
    missing = []
    for key, shape in shapes.items():
        saved = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if saved in stored:
            tensors[key] = stored[saved]
            _check_shape(file, stored[saved], shape)
        elif not (key == "lm_head.weight" and config.tie_word_embeddings):
            missing.append(saved or key)
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing[:3])}, which {known.name} models have")
    with named(str(file)):
        specs = {
            key.removesuffix(".weight"): GGUF_GRIDS[tensor.tensor_type.name]
            for key, tensor in tensors.items()
            if _has_codes(key, tensor)
        }
    head = specs.get("lm_head")
    if head is not None and not _like_blocks(head, specs.values()):
        del specs["lm_head"]
    rest = [each for key, each in tensors.items() if key.removesuffix(".weight") not in specs]
    kinds = {each.tensor_type.name for each in rest if len(each.shape) == 2}
    dtype = _PLAIN.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
    return GgufTensors(config, tensors, specs, dtype, known.rotates_pairs)


def _architecture(
    file: Path, values: dict[str, Any], stored: dict[str, GgufTensor]
) -> tuple[str, GgufArchitecture]:
    """Return the class of transformers that reads a file, the first of several, and its layout."""
    known: dict[str, tuple[str, GgufArchitecture]] = {}
    for name, each in gguf_architectures().items():
        if each.whole:
            known.setdefault(each.name, (name, each))
    arch = values.get("general.architecture")
    if arch not in known or values.get(f"{arch}.expert_count"):
        kind = f"{arch} with experts" if arch in known else repr(arch)
        raise NotImplementedError(
            f"{file}: GGUF files of {printable(kind)} are not read yet; these are: "
            f"{', '.join(known)}"
        )
    scaling = values.get(f"{arch}.rope.scaling.type", "none")
    if "rope_freqs.weight" in stored or scaling not in ("none", "linear"):
        kind = "llama3" if "rope_freqs.weight" in stored else scaling
        raise NotImplementedError(
            f"{file} scales positions ({printable(str(kind))}), and does not hold all that "
            "transformers' config wants to know of it; convert the checkpoint that it was made from"
        )
    return known[arch]


def _config(
    file: Path,
    name: str,
    known: GgufArchitecture,
    values: dict[str, Any],
    stored: dict[str, GgufTensor],
) -> Any:
    """Return transformers' own reading of a config, with what it (5.24) leaves out."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.name_or_path = str(file)
    config.architectures = [name]
    arch, heads = known.name, config.num_attention_heads
    config.head_dim = values.get(f"{arch}.attention.key_length", config.hidden_size // heads)
    config.tie_word_embeddings = "output.weight" not in stored
    for option, tensor in known.biases.items():
        setattr(config, option, tensor in stored)
    if values.get(f"{arch}.rope.scaling.type", "none") == "linear":
        factor = float(values[f"{arch}.rope.scaling.factor"])
        config.rope_parameters = {
            **config.rope_parameters, "rope_type": "linear", "factor": factor
        }  # fmt: skip
    return config


def _state_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all tensors of the model, none of which is made."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@contextmanager
def _as_transformers_reads(file: Path) -> Iterator[None]:
    """Name the file in whatever transformers raises where values in it make no model."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{file}: transformers cannot make a model of its values: {type(error).__name__}: "
            f"{error}"
        ) from error


def _check_blocks(file: Path, count: Any, stored: dict[str, GgufTensor]) -> None:
    """Raise a ValueError unless the file has tensors of as many blocks as it says."""
    found = {each[1] for name in stored if (each := re.match(r"blk\.(\d+)\.", name))}
    if count != len(found):
        raise ValueError(f"{file} has block_count {count!r}, but tensors of {len(found)} blocks")


def _check_shape(file: Path, tensor: GgufTensor, shape: tuple[int, ...]) -> None:
    stored = tuple(reversed(tensor.shape))
    if stored != shape:
        raise ValueError(
            f"{file} has {tensor.name} of shape {list(stored)}; its values make it {list(shape)}"
        )


def _has_codes(name: str, tensor: GgufTensor) -> bool:
    """Return whether a tensor is a quantized linear; embeddings and float ones are not.

    Raises:
        CannotReadError: a linear of a block in a type whose codes are not read.
    """
    kind = tensor.tensor_type.name
    if len(tensor.shape) != 2 or kind in _PLAIN or "embed_tokens" in name:
        return False
    if kind in GGUF_GRIDS:
        return True
    if name == "lm_head.weight":
        return False
    raise CannotReadError(
        f"{name.removesuffix('.weight')} is in blocks of {kind}; the codes of "
        f"{', '.join(GGUF_GRIDS)} can be read"
    )


def _like_blocks(head: GridSpec, specs: Iterable[GridSpec]) -> bool:
    """Return whether a head keeps its codes: other formats would not hold those of super-blocks.

    Tools quantize it by more bits, Q6_K beside Q4_0: it is then dequantized, like embeddings.
    """
    if head.super_block:
        return any(each.super_block for each in specs if each is not head)
    return head.bits in (4, 8)
