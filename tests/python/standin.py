"""The stand-in device: a device of torch that needs no hardware, for tests of what runs on a GPU.

``load`` makes ``mlcalib._core`` the module that tests/cpp/standin builds: the same objects, and the
CUDA backend's sources for the device ``standin``. A process has it or has it not, so that tests
that need no device see torch as it is.
"""

import faulthandler
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch

PATH = "MLCALIB_STANDIN"
"""Environment variable: the module to load; the tests' conftest.py does so where it is set."""


def load(path: str | Path) -> None:
    """Load the stand-in device; before mlcalib is imported."""
    if "mlcalib" in sys.modules:
        raise RuntimeError("mlcalib has been imported with its own core already")
    loader = importlib.machinery.ExtensionFileLoader("mlcalib._core", str(path))
    spec = importlib.util.spec_from_file_location("mlcalib._core", path, loader=loader)
    assert spec is not None
    torch.utils.rename_privateuse1_backend("standin")
    core = importlib.util.module_from_spec(spec)
    loader.exec_module(core)
    sys.modules["mlcalib._core"] = core
    torch._register_device_module("standin", _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    faulthandler.enable()
    torch.ops.standin.name_faults()


def load_if_asked() -> None:
    """Load the module that the environment names, if it names one."""
    if path := os.environ.get(PATH):
        load(path)


def name_faults_if_asked() -> None:
    """Name faults on what is the standard error now, where the device is loaded."""
    if os.environ.get(PATH):
        torch.ops.standin.name_faults()


def _module() -> ModuleType:
    """Return ``torch.standin``: as much of ``torch.cuda`` as torch and mlcalib ask of a device."""
    calls = torch.ops.standin
    module = ModuleType("torch.standin")

    def mem_get_info(device: torch.device | int | None = None) -> tuple[int, int]:
        index = device if isinstance(device, int) else device and device.index
        return calls.memory(index or 0)

    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = calls.device_count
    module.current_device = calls.current_device
    module.set_device = lambda device: calls.set_device(torch.device("standin", device).index)
    module.get_device_name = lambda device=None: "stand-in"
    module.mem_get_info = mem_get_info
    module.synchronize = lambda device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    return module
