"""A variant on its way to a checkpoint, and its finished blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.layer_names import saved_name
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.formats import Format
from mlcalib.models import Adapter
from mlcalib.quantization.block_files import Parts
from mlcalib.quantization.variant import Variant


@dataclass
class Job:
    """A variant on its way to a checkpoint.

    Attributes:
        variant: what solves, and on what.
        checkpoint_format: how its linears are held.
        specs: the grid of each linear.
        parts: its finished blocks.
        stopwatch: time spent on it alone.
    """

    variant: Variant
    checkpoint_format: Format
    specs: Mapping[str, GridSpec]
    parts: Parts
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


def packed(
    job: Job,
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    linears: Mapping[str, QuantizedLinear],
) -> dict[str, Tensor]:
    """Return the tensors of a quantized block, by their names in the checkpoint, in order."""
    found: dict[str, Tensor] = {}
    whole = job.checkpoint_format.file is not None  # packed when the file is written
    for key, tensor in block.state_dict().items():
        layer = f"{block_name}.{key.removesuffix('.weight')}"
        if layer not in linears:
            found[f"{block_name}.{key}"] = tensor
        elif whole:
            linear = linears[layer]
            found[f"{layer}.codes"] = linear.codes
            found[f"{layer}.scale"], found[f"{layer}.zero"] = linear.grid.scale, linear.grid.zero
        else:
            found |= job.checkpoint_format.pack(layer, linears[layer])
    if whole:
        return found
    return {saved_name(name, adapter.saved_names): tensor for name, tensor in found.items()}


def finished_linear(
    job: Job, adapter: Adapter, tensors: Mapping[str, Tensor], layer: str
) -> QuantizedLinear:
    """Return a linear of a finished block.

    Args:
        job: what made it.
        adapter: the model's family.
        tensors: of the block's part.
        layer: its name in the model.
    """
    spec = job.specs[layer]
    if job.checkpoint_format.file is not None:
        grid = Grid(tensors[f"{layer}.scale"], tensors[f"{layer}.zero"], spec)
        return QuantizedLinear(tensors[f"{layer}.codes"], grid)
    name = saved_name(layer, adapter.saved_names)
    return job.checkpoint_format.unpack(name, tensors, spec)


def restore(job: Job, adapter: Adapter, block_name: str, block: nn.Module) -> None:
    """Give a block the weights that its finished part holds, as ``Variant.solve`` leaves them."""
    tensors = job.parts.tensors(block_name)
    names = {} if job.checkpoint_format.file is not None else adapter.saved_names
    for path, module in block.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            layer = f"{block_name}.{path}".removesuffix(".")
            value = tensors.get(saved_name(f"{layer}.{key}", names))
            if value is None:
                value = finished_linear(job, adapter, tensors, layer).dequantize()
            setattr(module, key, nn.Parameter(value.to(parameter.dtype), requires_grad=False))
