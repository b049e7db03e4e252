"""A whole GGUF file: hyperparameters, tokenizer and tensors under llama.cpp's names.

As llama.cpp does it (``conversion/llama.py``, ``conversion/qwen.py``, ``conversion/base.py``).
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlcalib._core import build_info
from mlcalib.common.gguf_types import BLOCK_TYPES
from mlcalib.common.optional import optional
from mlcalib.formats._gguf_tokenizer import add_tokenizer, check_tokenizer
from mlcalib.models import gguf_architectures

_FILE_TYPES = {kind: f"MOSTLY_{kind}" for kind in BLOCK_TYPES} | {
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
}


def check_config(config: Any, architecture: str, tokenizer: Any) -> None:
    """Refuse what would not compute in llama.cpp what it computes in transformers.

    Raises:
        NotImplementedError: the architecture, or something in its config or tokenizer.
        ImportError: the package gguf is missing.
    """
    optional("gguf", "gguf", "writing GGUF")
    known = [name for name, each in gguf_architectures().items() if each.whole]
    if architecture not in known:
        raise NotImplementedError(
            f"GGUF files of {architecture} are not written yet: names, hyperparameters and the "
            f"order of q and k differ by family; these are: {', '.join(known)}. Save "
            "with --format dense and use llama.cpp's convert_hf_to_gguf.py."
        )
    if getattr(config, "use_sliding_window", False):
        raise NotImplementedError("llama.cpp has no sliding windows for this family's blocks")
    kind = _rope(config)["rope_type"]
    if kind not in ("default", "linear", "llama3"):
        raise NotImplementedError(f"rope_type {kind!r} is not written to GGUF yet")
    check_tokenizer(tokenizer, config.vocab_size)


def write_gguf(
    path: Path,
    config: Any,
    architecture: str,
    tokenizer: Any,
    tensors: Iterable[tuple[str, Tensor, str | None]],
) -> None:
    """Write a model file.

    Args:
        path: of the file.
        config: the model's.
        architecture: its class in transformers.
        tokenizer: its tokenizer.
        tensors: name in the model, values, and the type of packed blocks (uint8 [rows, bytes]) or
            None for a tensor as it is. A tied lm_head is not among them.

    Raises:
        ValueError: a tensor that the architecture does not know.
        NotImplementedError: as ``check_config``.
    """
    gguf = optional("gguf", "gguf", "writing GGUF")
    known = gguf_architectures()[architecture]
    writer = gguf.GGUFWriter(path, known.name)
    _add_config(gguf, writer, config, architecture)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    names = known.tensor_names(config.num_hidden_layers)
    kinds: list[str] = []
    for name, values, kind in tensors:
        saved = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if saved is None:
            raise ValueError(f"{name} has no name in GGUF files of {architecture}")
        ordered = _interleaved(name, values, config) if known.rotates_pairs else values
        _add_tensor(gguf, writer, saved, ordered, kind)
        kinds += [kind] if kind is not None else []
    if (factors := _rope_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    common = max(set(kinds), key=kinds.count)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[common]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(gguf: Any, writer: Any, config: Any, architecture: str) -> None:
    head_dim = _head_dim(config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(config.name_or_path or architecture).stem)
    writer.add_string("general.quantized_by", f"mlcalib {build_info()['version']}")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    # Files of Mistral know no window: within it, full attention is the same.
    window = getattr(config, "sliding_window", None)
    writer.add_context_length(min(config.max_position_embeddings, window or math.inf))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    if _rope(config)["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(_rope(config)["factor"]))
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def _add_tensor(gguf: Any, writer: Any, name: str, values: Tensor, kind: str | None) -> None:
    values = values.detach().cpu().contiguous()
    if kind is not None:
        writer.add_tensor(name, values.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
    elif values.dim() == 1:  # llama.cpp adds and multiplies norms and biases in float32
        writer.add_tensor(name, values.float().numpy())
    elif values.dtype == torch.bfloat16:
        raw = values.view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, values.numpy())


def _interleaved(name: str, values: Tensor, config: Any) -> Tensor:
    """Put rows of q and k from halves (x₀ x₁ … y₀ y₁ …) into the pairs that llama.cpp rotates."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _head_dim(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    """Return rope_type, rope_theta and what scaling needs."""
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.rope_parameters or {})}


def _rope_factors(config: Any) -> "np.ndarray[Any, Any] | None":
    """Return what llama.cpp divides each frequency by in Llama 3's scaling, float32."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size, factor = _head_dim(config), rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    turns = length * rope["rope_theta"] ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), dtype=np.float32)
