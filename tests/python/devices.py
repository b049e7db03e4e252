"""The devices beside the CPU that are there: a GPU, or the stand-in where it is loaded.

A test that takes ``device`` from ``each_device`` runs on each of them, and is skipped without any.
"""

import pytest
import torch

from mlcalib import _core

DEVICES = [
    kind
    for kind in _core.device_types()
    if kind != "cpu" and torch.get_device_module(kind).is_available()
]

_WHY = "needs a GPU and a core that was built for it, or the stand-in: make test-standin"
_NONE = [pytest.param("none", marks=pytest.mark.skip(reason=_WHY))]

each_device = pytest.mark.parametrize("device", DEVICES or _NONE)
on_the_standin = pytest.mark.skipif("standin" not in DEVICES, reason="make test-standin")
