"""Find what in a model's weights would spoil a run, before it does."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.models import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_shared(model: "PreTrainedModel", adapter: Adapter) -> None:
    """Find linears that share a weight, with each other or with an embedding.

    Args:
        model: its weights are compared by identity, and may be on the meta device.
        adapter: its family.

    Raises:
        ValueError: there are some; names the layers.
    """
    names = {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    for name, linear in adapter.named_linears(model):
        if name in adapter.places:
            continue  # solved at the first of its places
        other = names.setdefault(id(linear.weight), name)
        if other != name:
            raise ValueError(
                f"{name} and {other} share one weight; quantizing one would change the other. "
                "Untie them first."
            )


def check_block(adapter: Adapter, block_name: str, block: nn.Module) -> None:
    """Find NaN or Inf in the weights of a block: of its linears, norms and all else.

    Raises:
        ValueError: there are some; names the layer.
    """
    named = {
        f"{member}.weight": f"{block_name}.{member}"
        for members in adapter.linears_of(block).values()
        for member in members
    }
    for name, parameter in block.named_parameters():
        check_finite(named.get(name, f"{block_name}.{name}"), parameter)


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a tensor of a model with NaN or Inf in it.

    Raises:
        ValueError: names it.
    """
    if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
        raise ValueError(
            f"{name}: the weight holds {int((~finite).sum())} NaN or Inf; the model is damaged, or "
            f"its dtype ({tensor.dtype}) cannot hold it. Get it again, or load it as float32."
        )
