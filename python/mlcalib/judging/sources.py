"""Which model it is."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mlcalib.records import origin


@dataclass(frozen=True)
class Source:
    """Where answers come from, as in a row of results.

    Attributes:
        model: the model as it was given.
        method: quantizer, ``float``, or ``unknown``.
        calibration: name of the calibration set, or ``none``.
    """

    model: str
    method: str = "unknown"
    calibration: str = "none"

    def __str__(self) -> str:
        calibration = "" if self.calibration == "none" else f" {self.calibration}"
        how = "" if self.method == "unknown" else f" ({self.method}{calibration})"
        return self.model + how


def source_of(model: str) -> Source:
    """Return the model with its method and calibration, from its ``mlcalib.json`` if it has one."""
    return Source(model, *origin(model))


def identity(model: str) -> str:
    """Return what tells a model from another of the same name: a folder's files may be replaced."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    files += sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        return model
    digest = hashlib.sha256()
    for file in files:
        content: object = file.stat().st_mtime_ns  # hashing weights would take as long as reading
        if file.suffix == ".json":
            content = file.read_bytes()
        digest.update(repr((file.name, file.stat().st_size, content)).encode())
    return f"{model} {digest.hexdigest()}"
