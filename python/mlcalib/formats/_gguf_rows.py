"""Orders of rows that llama.cpp's graphs read, where transformers holds another.

As llama.cpp's converters do it (``modify_tensors`` in ``conversion``). Each takes the name of a
tensor in the model, its values (numbers, or packed codes: uint8 [rows, bytes]) and the config, and
moves rows as a whole.
"""

import re
from typing import Any

import torch
from torch import Tensor

from mlcalib.formats._gguf_config import head_dim, rope


def interleaved(name: str, values: Tensor, config: Any) -> Tensor:
    """Put rows of q and k from halves (x₀ x₁ … y₀ y₁ …) into the pairs that llama.cpp rotates."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2] if "." in name else "")
    if heads is None:
        return values
    each = values.reshape(heads, -1, *values.shape[1:])
    turned = int((rope(config).get("partial_rotary_factor") or 1.0) * each.shape[1])
    halves = each[:, :turned].reshape(heads, 2, -1, *values.shape[1:])
    pairs = halves.transpose(1, 2).reshape(heads, turned, *values.shape[1:])
    return torch.cat([pairs, each[:, turned:]], dim=1).reshape(values.shape)


def halved(name: str, values: Tensor, config: Any) -> Tensor:
    """Put rows of q and k from the pairs (x₀ y₀ x₁ y₁ …) into halves, for positions in sections."""
    if not any(part in name for part in (".q_proj.", ".k_proj.")):
        return values
    each = values.reshape(-1, head_dim(config), *values.shape[1:])
    turned = int((rope(config).get("partial_rotary_factor") or 1.0) * each.shape[1])
    pairs = each[:, :turned]
    return torch.cat([pairs[:, ::2], pairs[:, 1::2], each[:, turned:]], dim=1).reshape(values.shape)


def rotated_first(name: str, values: Tensor, config: Any) -> Tensor:
    """Put what positions may turn first in each head of q, as llama.cpp has it in those of k."""
    block = re.search(r"\.layers\.(\d+)\.self_attn\.q_proj\.", name)
    if block is None or config.layer_types[int(block[1])] != "full_attention":
        return mamba(name, values, config) if name.endswith(".A_log") else values
    each = values.reshape(config.num_attention_heads, -1, *values.shape[1:])
    turned = [each[:, config.qk_nope_head_dim :], each[:, : config.qk_nope_head_dim]]
    return torch.cat(turned, dim=1).reshape(values.shape)


def by_head(name: str, values: Tensor, config: Any) -> Tensor:
    """Put all rows of q first, then those of k and of v, where each head has its own three."""
    if not any(part in name for part in (".query_key_value.", ".c_attn.")):
        return values
    split = values.reshape(config.num_attention_heads, 3, -1, *values.shape[1:])
    return split.transpose(0, 1).reshape(values.shape)


def by_group(name: str, values: Tensor, config: Any) -> Tensor:
    """Put q, k and v one after the other, where each head of k and v lies after its heads of q."""
    if ".query_key_value." not in name:
        return values
    heads = falcon_heads(config)
    each = config.num_attention_heads // heads + 2
    split = values.reshape(heads, each, -1, *values.shape[1:])
    parts = (split[:, :-2], split[:, -2:-1], split[:, -1:])
    return torch.cat([part.reshape(-1, *values.shape[1:]) for part in parts])


def falcon_heads(config: Any) -> int:
    """Return the heads of keys and values of a Falcon."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def mamba(name: str, values: Tensor, config: Any) -> Tensor:
    """Give what recurrent blocks hold besides linears the shapes and signs that graphs read."""
    if name.endswith(".A_log"):
        return -values.double().exp().float()  # the same on every processor
    if name.endswith((".conv1d.weight", ".conv.conv.weight")):
        return values.squeeze(1)
    return values


def mamba2(name: str, values: Tensor, config: Any) -> Tensor:
    """Do as ``mamba``, for blocks whose heads have one decay each; and norms by groups."""
    if name.endswith((".A_log", ".D")):
        return mamba(name, values, config)[:, None]
    if name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
        return values.reshape(mamba_groups(config), -1)
    return mamba(name, values, config)


def gated_delta(name: str, values: Tensor, config: Any) -> Tensor:
    """Put q of all heads first, then k, v and z, where each head of keys has its own four."""
    if ".in_proj_qkvz." not in name:
        return mamba(name, values, config)
    heads = config.linear_num_key_heads
    keys = config.linear_key_head_dim
    more = config.linear_num_value_heads // heads * config.linear_value_head_dim
    each = values.reshape(heads, -1, *values.shape[1:])
    split = torch.split(each, [keys, keys, more, more], dim=1)
    return torch.cat([part.reshape(-1, *values.shape[1:]) for part in split])


def mamba_groups(config: Any) -> int:
    """Return how many groups of heads share what they read and write."""
    return int(getattr(config, "n_groups", None) or config.mamba_n_groups)


def as_it_is(name: str, values: Tensor, config: Any) -> Tensor:
    """Leave rows where they are."""
    return values
