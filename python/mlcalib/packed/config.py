"""What makes ``from_pretrained(..., quantization_config=PackedConfig())`` keep weights packed.

Imports transformers, so nothing imports this before it is asked for.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AutoHfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from mlcalib.errors import named
from mlcalib.formats import Checkpoint, open_checkpoint
from mlcalib.models import find_adapter
from mlcalib.models.experts import Expert, unfuse
from mlcalib.packed.linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_METHOD = "mlcalib"


@register_quantization_config(_METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """Asks ``from_pretrained`` to keep the weights of a quantized checkpoint packed (on the CPU).

    Without it, transformers loads the checkpoint as it always does.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take no options.

        Raises:
            TypeError: there are some.
        """
        if options := kwargs.keys() - {"quant_method"}:
            raise TypeError(f"PackedConfig takes no options, but was given {', '.join(options)}")
        self.quant_method = _METHOD


@register_quantizer(_METHOD)
class PackedQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is not typed
    """Puts ``PackedLinear`` in the place of the linears that a checkpoint has codes for."""

    requires_calibration = True  # the checkpoint is quantized already, or refused
    is_trainable = False

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        """Make a quantizer for one ``from_pretrained``."""
        super().__init__(quantization_config, **kwargs)
        self._checkpoint: Checkpoint | None = None
        self._modules: dict[str, str] = {}  # linear in the checkpoint → module

    def is_serializable(self) -> bool:
        """Return False: the checkpoint it came from is the file."""
        return False

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: list[str], **_: Any
    ) -> None:
        """Replace modules; transformers then loads what is not packed."""
        self._checkpoint = open_checkpoint(Path(checkpoint_files[0]).parent)
        names = _renamings(model)
        linears = {_module_name(name, names): name for name in self._checkpoint.linears}
        if any(re.search(r"\.experts\.\d+\.", module) for module in linears):
            unfuse(model, find_adapter(type(model).__name__))
        _check(model, linears)
        for module, name in linears.items():
            linear = model.get_submodule(module)
            packed = PackedLinear(
                linear.in_features, linear.out_features, self._checkpoint.specs[name], linear.bias
            )
            model.set_submodule(module, packed)
        self._modules = {name: module for module, name in linears.items()}
        # Not unexpected: they are read below.
        parts = {
            re.escape(tensor.rpartition(".")[2])
            for tensor in self._checkpoint.files.keys() - set(self._checkpoint.others)
        }
        known = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = known | {rf"\.({'|'.join(sorted(parts))})$"}

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **_: Any
    ) -> "PreTrainedModel":
        """Fill the linears: not before, since transformers makes every buffer anew."""
        assert self._checkpoint is not None  # set before
        for name, module in self._modules.items():
            linear = model.get_submodule(module)
            with named(name):
                linear.fill(self._checkpoint.linear(name))
        self._checkpoint = None
        return model.requires_grad_(False)


def _renamings(model: "PreTrainedModel") -> Mapping[str, str]:
    """Return part of a name in the model → what the family's checkpoints call it."""
    try:
        return find_adapter(type(model).__name__).saved_names
    except NotImplementedError:
        return {}  # a family that mlcalib cannot quantize, by another tool


def _module_name(name: str, renamings: Mapping[str, str]) -> str:
    for module, saved in renamings.items():
        name = name.replace(saved, module)
    return name


def _check(model: "PreTrainedModel", linears: Mapping[str, str]) -> None:
    """Refuse names that are no linears, and experts of which only some are packed."""
    modules = dict(model.named_modules())
    for module, name in linears.items():
        if not isinstance(modules.get(module), nn.Linear):
            found = type(modules[module]).__name__ if module in modules else "nothing of that name"
            raise NotImplementedError(
                f"the checkpoint has packed weights of {name}, where {type(model).__name__} has "
                f"{found}, not a linear; load it without PackedConfig"
            )
    if left := [name for name in _expert_linears(modules) if name not in linears]:
        # transformers would look for fused ones, and draw these at random.
        raise NotImplementedError(
            f"some experts are packed and others, {left[0]} among them, are not; load the "
            "checkpoint without PackedConfig"
        )


def _expert_linears(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    for name, module in modules.items():
        if isinstance(module, Expert):
            for child, linear in module.named_children():
                if isinstance(linear, nn.Linear):
                    yield f"{name}.{child}"


def _accept_packed_config() -> None:
    """Let ``from_pretrained`` take a PackedConfig for a checkpoint that has a config of its own.

    transformers (5.20 to 5.23) refuses a config of another class than the checkpoint's; there is no
    hook for it.
    """
    merge = AutoHfQuantizer.merge_quantization_configs

    def merge_quantization_configs(
        quantization_config: Any, quantization_config_from_args: Any
    ) -> Any:
        if isinstance(quantization_config_from_args, PackedConfig):
            return quantization_config_from_args
        return merge(quantization_config, quantization_config_from_args)

    AutoHfQuantizer.merge_quantization_configs = staticmethod(merge_quantization_configs)


_accept_packed_config()
