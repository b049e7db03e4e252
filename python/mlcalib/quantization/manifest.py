"""What a run is made from, written down where it keeps its work, so that it can be gone on with."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mlcalib import _core
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.errors import printable
from mlcalib.common.files import atomic_file
from mlcalib.common.safetensors_read import read_json
from mlcalib.models.device import device_name
from mlcalib.quantization.recipe import Recipe


def claim(
    folder: Path, what: str, inputs: Mapping[str, Any], *, other_threads: bool = False
) -> bool:
    """Write down what a run is made from, or check that it is what an earlier run began with.

    Args:
        folder: where the run keeps what is done.
        what: the run, for messages.
        inputs: all that changes its result; JSON types.
        other_threads: whether it may go on with another number of threads. Blocks that are finished
            stay as they are.

    Returns:
        Whether there was an earlier run.

    Raises:
        ValueError: something differs; names it.
    """
    path = folder / "manifest.json"
    wanted = json.loads(json.dumps(inputs))
    if not path.is_file():
        with atomic_file(path) as file:
            json.dump(wanted, file, indent=2, ensure_ascii=False)
        return False
    begun = read_json(path)
    changed = list(_differences(begun, wanted, ""))
    if changed and _without_threads(begun) == _without_threads(wanted):
        if other_threads:
            return True
        raise ValueError(
            f"{what} was begun in {folder} with other threads: {changed[0]}. Go on with as "
            "many, or give --other-threads: blocks that are finished stay, the last bits of others "
            "may differ from those of a run that was not interrupted, and the record says so."
        )
    if changed:
        raise ValueError(
            f"{what} was begun in {folder} from other inputs: {'; '.join(changed[:5])}"
            f"{f'; and {len(changed) - 5} more' if changed[5:] else ''}. Go on with the same, give "
            "another --out, or remove the folder."
        )
    return True


def _differences(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}".strip("."))
        ]
    return [] if old == new else [f"{printable(where)} was {_short(old)} and is {_short(new)}"]


def _without_threads(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "threads"}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= 60 else f"{text[:57]}...")


def recipe_inputs(recipe: Recipe, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Return what decides a checkpoint beside the model and the machine; JSON types."""
    text = None
    if calibration is not None:
        text = {"tokens": calibration.tokens, "sha256": calibration.fingerprint}
    return {"recipe": recipe.description, "calibration": text}


def machine(device: torch.device) -> dict[str, Any]:
    """Return what else decides the last bits of a result on a device; JSON types."""
    return {
        "mlcalib": _core.build_info()["version"],
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "instruction set": _core.isa(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }
