"""Static ranges of activations, as compressed-tensors stores them: one number for each linear."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlcalib._core import QuantizedLinear
from mlcalib.formats._layout import SCALE_DTYPES

LARGEST = 448.0
"""The largest FP8 number."""


def bound_of(name: str, quantized: QuantizedLinear) -> float:
    """Return the largest magnitude of a linear's input that the checkpoint is to hold.

    Raises:
        ValueError: it is not known.
    """
    if not quantized.input_bound > 0:
        raise ValueError(
            f"{name}: the range of its input is not known, which a checkpoint with static "
            "activations stores; quantize with calibration text and this format (scheme='FP8' or "
            "'NVFP4')"
        )
    return quantized.input_bound


def scale_up_to(bound: float, dtype: torch.dtype) -> Tensor:
    """Return the scale [1] with which FP8 numbers reach a bound: rounded up, so that they do."""
    exact = bound / LARGEST
    scale = torch.tensor([exact], dtype=torch.float64).to(dtype)
    if float(scale) < exact:
        larger = exact * (1 + 0.51 * torch.finfo(dtype).eps)  # half a step, and no tie
        scale = torch.tensor([larger], dtype=torch.float64).to(dtype)
    return scale


def positive_number(tensors: Mapping[str, Tensor], name: str) -> float:
    """Return a tensor of one positive number.

    Raises:
        ValueError: it is missing, or something else.
    """
    found = tensors.get(name)
    if found is None:
        raise ValueError(f"the checkpoint has no tensor {name}")
    value = float(found) if found.numel() == 1 and found.dtype in SCALE_DTYPES else 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, expected a positive number")
    return value


def has_static_inputs(config: Mapping[str, Any]) -> bool:
    """Return whether all groups of a section of compressed-tensors store ranges of inputs."""
    groups = config.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    if not all(isinstance(group, dict) for group in found):
        return False  # names of presets
    inputs = [(group.get("input_activations") or {}).get("dynamic", True) for group in found]
    return bool(inputs) and not any(dynamic is True for dynamic in inputs)


KV_CACHE_SCHEME = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor",
    "dynamic": False,
    "observer": "static_minmax",
}
"""What compressed-tensors calls FP8 keys and values with one scale each; vLLM takes no other."""


def cache_scales(found: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the scales of keys and values, [1] each, by their names.

    transformers and vLLM read ``k_scale`` and ``v_scale`` of an attention module
    (``maybe_remap_kv_scale_name`` in vllm/model_executor/model_loader/weight_utils.py).

    Args:
        found: attention module → ``k`` and ``v`` → the largest magnitude, ``bound``.
        dtype: of the scales.
    """
    return {
        f"{name}.{kind}_scale": scale_up_to(each["bound"], dtype)
        for name, kinds in found.items()
        for kind, each in kinds.items()
    }
