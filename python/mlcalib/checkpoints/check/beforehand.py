"""What readers will make of a checkpoint that is yet to be quantized."""

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch

from mlcalib._core import GridSpec
from mlcalib.formats import Facts, Format, Verdict

if TYPE_CHECKING:
    from mlcalib._core import Order

_log = logging.getLogger(__name__)


def foresee(
    checkpoint_format: Format,
    specs: Mapping[str, GridSpec],
    shapes: Mapping[str, tuple[int, int]],
    order: "Order",
    left: Collection[str],
    dtype: torch.dtype,
) -> dict[str, Verdict]:
    """Return what each reader will make of the checkpoint; log a warning where it will not load.

    llama.cpp's refusal of anything but GGUF is no news, and not logged.

    Args:
        checkpoint_format: what it is to be saved in.
        specs: quantized linear → its grid.
        shapes: of all linears, (out, in).
        order: the order in which the solver visits channels.
        left: linears that are not quantized.
        dtype: the model's.
    """
    section = checkpoint_format.quantization_config(specs, order, list(left)) if specs else None
    own = {name: shapes[name] for name in specs}
    found = checkpoint_format.verdicts(Facts(section or {}, specs, own, dtype, left))
    for reader, verdict in found.items():
        if verdict.loads is False and reader != "llama.cpp":
            _log.warning("%s will not load this checkpoint: %s", reader, "; ".join(verdict.reasons))
    return found
