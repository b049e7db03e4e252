"""The device that a model's blocks run on, and how they get there."""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlcalib import _core
from mlcalib.common.ranks import Ranks

CPU = torch.device("cpu")

_log = logging.getLogger(__name__)

_NOT_BUILT = "mlcalib was built without CUDA"
_CGROUPS = [
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
]


def choose_device(asked: str) -> torch.device:
    """Return the device to run on.

    Where ``auto`` leaves a GPU unused because the core was built without CUDA, a warning says once
    how to build it.

    Args:
        asked: ``auto`` (the first GPU, where there is one and the core was built for it; else the
            CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: another name, a GPU that is not there, or a core that was built without CUDA.
    """
    if asked == "auto":
        reasons = {kind: _why_no(kind) for kind in _gpu_types()}
        if reasons["cuda"] == _NOT_BUILT:
            _warn_once(f"the GPU is not used, because {_NOT_BUILT}; {_how_to_build()}")
        return next((torch.device(kind, 0) for kind, why in reasons.items() if not why), CPU)
    kind, colon, index = asked.partition(":")
    if kind not in ("cpu", *_gpu_types()) or (colon and (kind == "cpu" or not index.isdecimal())):
        raise ValueError(f"device is '{asked}', expected auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if why := _why_no(kind):
        how = f"; {_how_to_build()}" if why == _NOT_BUILT else ""
        raise ValueError(f"device is '{asked}', but {why}{how}.")
    number, count = int(index or 0), torch.get_device_module(kind).device_count()
    if number >= count:
        raise ValueError(f"device is '{asked}', but there are {count} GPUs, counted from 0.")
    return torch.device(kind, number)


def own_device(asked: str, ranks: Ranks) -> str:
    """Return which device a rank runs on: where GPUs are meant, each on a machine its own.

    Args:
        asked: see ``choose_device``.
        ranks: the processes of the run.

    Raises:
        ValueError: see ``choose_device``; or one GPU for several ranks.
    """
    chosen = choose_device(asked)
    if chosen.type == "cpu" or ranks.local_size == 1:
        return asked
    if ":" in asked:
        raise ValueError(
            f"device is '{asked}', one GPU for {ranks.local_size} ranks; give '{chosen.type}' or "
            "'auto', and each has its own."
        )
    choose_device(own := f"{chosen.type}:{ranks.local}")
    return own


def device_name(device: torch.device) -> str:
    """Return what a device is called in records: ``cpu``, or the name of the GPU."""
    if device.type == "cpu":
        return "cpu"
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if named is None else str(named(device))


def explain(asked: str, device: torch.device) -> str:
    """Return one line that says on which device a run is, and why."""
    if device.type != "cpu":
        free, total = free_memory(device)
        held = f"{free >> 30} of {total >> 30} GiB free"
        return f"device: {device} ({device_name(device)}, {held})"
    return "device: cpu" if asked == "cpu" else f"device: cpu ({_why_no('cuda') or 'as asked'})"


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes that can still be had on a device, and all that it has.

    Of the CPU they are what Linux says can be had without swapping, or what is left to the
    container; other systems say only how much there is.
    """
    if device.type == "cpu":
        return _host_memory()
    module = torch.get_device_module(device)
    free, total = module.mem_get_info(device)
    if hasattr(module, "memory_reserved"):  # what torch keeps for itself can be had again
        free += module.memory_reserved(device) - module.memory_allocated(device)
    return int(free), int(total)


def _host_memory() -> tuple[int, int]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    if (info := Path("/proc/meminfo")).is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used in _CGROUPS:
        if limit.is_file() and (most := limit.read_text().strip()).isdecimal():
            total = min(total, int(most))
            free = min(free, int(most) - int(used.read_text()))
    return max(free, 0), total


def _gpu_types() -> list[str]:
    """Return torch's names of the devices that may be there: those that the core has kernels for.

    CUDA is one of them anyway: a core that was built without it says so.
    """
    return ["cuda", *(kind for kind in _core.device_types() if kind not in ("cpu", "cuda"))]


def _why_no(kind: str) -> str | None:
    """Return why no GPU of a type can be used; None where one can."""
    if not torch.get_device_module(kind).is_available():
        return "torch sees no GPU"
    return None if kind in _core.device_types() else _NOT_BUILT


def _how_to_build() -> str:
    return (
        f"with nvcc of CUDA {torch.version.cuda} on the path, build it again: "
        "pip install --no-build-isolation --config-settings=cmake.define.MLCALIB_CUDA=ON ."
    )


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


@contextmanager
def short_of_memory(device: torch.device, held: str, remedy: str) -> Iterator[None]:
    """Say, when a device's memory runs out inside, what was held there and what takes less.

    Args:
        device: the device.
        held: what needs the memory.
        remedy: the options that reduce it.

    Raises:
        torch.OutOfMemoryError: with that message.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        out = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (out or "DefaultCPUAllocator" in str(error)):  # how torch calls it on the CPU
            raise
        free, total = free_memory(device)
        raise torch.OutOfMemoryError(
            f"{device} is out of memory ({free / 1e9:.1f} of {total / 1e9:.1f} GB are free) with "
            f"{held}. What takes less: {remedy}."
        ) from error


def input_device(model: nn.Module) -> torch.device:
    """Return where a model in memory reads token ids.

    Parameters that accelerate keeps elsewhere are on the meta device; its hooks move the ids.
    """
    return next((each.device for each in model.parameters() if each.device.type != "meta"), CPU)


def move_block(block: nn.Module, device: torch.device) -> None:
    """Give a block's modules their parameters and buffers on a device, where they then are.

    Parameters are replaced, not changed: another model may share them. Those in the host's memory
    are copied from pinned memory, one at a time, beside what the device is doing.
    """
    copy = _copier(device)
    for module in block.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.device != device:
                setattr(module, key, nn.Parameter(copy(parameter.detach()), requires_grad=False))
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.device != device:
                persistent = key not in module._non_persistent_buffers_set
                module.register_buffer(key, buffer.to(device), persistent=persistent)


def _copier(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what copies a tensor to a device and waits for that alone."""
    if device.type != "cuda":  # no streams that are known to run beside each other
        return lambda tensor: tensor.to(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    computing = torch.cuda.current_stream(device)

    def copy(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor.to(device)
        there = torch.empty_like(tensor, device=device)
        stream.wait_stream(computing)  # its memory may be that of tensors still being read there
        with torch.cuda.stream(stream):
            there.copy_(tensor.pin_memory(), non_blocking=True)
        stream.synchronize()
        return there

    return copy


def moved(value: Any, device: torch.device) -> Any:
    """Return arguments of a block with their tensors on a device; what holds none as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(each, device) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(each, device) for each in value)
    return value
