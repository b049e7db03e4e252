"""gpu_check_device.py OUT: writes the GPU's name, and what mlcalib was built for, as JSON."""

import json
import sys
from pathlib import Path

import torch

from mlcalib import _core

device = {
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "mlcalib": {key: str(value) for key, value in _core.build_info().items()},
    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    "gpu_bytes": torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None,
}
Path(sys.argv[1]).write_text(json.dumps(device), encoding="utf-8")
print(json.dumps(device, indent=1))
