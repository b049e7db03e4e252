"""The device that a model's blocks run on, and how they get there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlcalib import _core

CPU = torch.device("cpu")


def choose_device(asked: str) -> torch.device:
    """Return the device to run on.

    Args:
        asked: ``auto`` (the first GPU, where there is one and the core was built for it; else the
            CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: another name, a GPU that is not there, or a core that was built without CUDA.
    """
    if asked == "auto":
        return torch.device("cpu" if _why_no_gpu() else "cuda:0")
    kind, colon, index = asked.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"device is '{asked}', expected auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if why := _why_no_gpu():
        raise ValueError(f"device is '{asked}', but {why}.")
    number, count = int(index or 0), torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"device is '{asked}', but there are {count} GPUs, counted from 0.")
    return torch.device("cuda", number)


def device_name(device: torch.device) -> str:
    """Return what a device is called in records: ``cpu``, or the name of the GPU."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def explain(asked: str, device: torch.device) -> str:
    """Return one line that says on which device a run is, and why."""
    if device.type != "cpu":
        free, total = torch.cuda.mem_get_info(device)
        return f"device: {device} ({device_name(device)}, {free >> 30} of {total >> 30} GiB free)"
    return "device: cpu" if asked == "cpu" else f"device: cpu ({_why_no_gpu()})"


def _why_no_gpu() -> str | None:
    """Return why no GPU can be used; None where one can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if _core.build_info()["cuda"] == "none":
        return (
            "mlcalib was built without CUDA; with nvcc of CUDA "
            f"{torch.version.cuda} on the path, build it again: "
            "pip install --no-build-isolation --config-settings=cmake.define.MLCALIB_CUDA=ON ."
        )
    return None


def move_block(block: nn.Module, device: torch.device) -> None:
    """Give a block's modules their parameters and buffers on a device.

    Parameters are replaced, not changed: another model may share them.
    """
    for module in block.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.device != device:
                moved = parameter.detach().to(device, non_blocking=True)
                setattr(module, key, nn.Parameter(moved, requires_grad=False))
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.device != device:
                persistent = key not in module._non_persistent_buffers_set
                module.register_buffer(key, buffer.to(device), persistent=persistent)


def moved(value: Any, device: torch.device) -> Any:
    """Return arguments of a block with their tensors on a device; what holds none as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(each, device) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(each, device) for each in value)
    return value
