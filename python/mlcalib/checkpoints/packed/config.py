"""What makes ``from_pretrained`` keep weights packed, with a ``PackedConfig`` or without.

Imports transformers, so nothing imports this before a quantized checkpoint is loaded.
"""

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mlcalib.checkpoints import Checkpoint, open_checkpoint
from mlcalib.checkpoints.packed.linear import PackedLinear
from mlcalib.common import compat
from mlcalib.common.errors import named
from mlcalib.common.loading_rules import LoadingRules
from mlcalib.formats import Format, find_format
from mlcalib.models import find_adapter
from mlcalib.models.experts import Expert, unfuse, unfuse_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_METHOD = "mlcalib"
_log = logging.getLogger(__name__)


def packed_section(config: Any, given: Any, device_map: Any) -> dict[str, Any] | None:
    """Return the ``quantization_config`` that keeps a checkpoint packed in place of its own.

    Args:
        config: the model's.
        given: the ``quantization_config`` that ``from_pretrained`` was given, or None.
        device_map: where the model goes, as transformers understood it; None is the CPU.

    Returns:
        None where the checkpoint is left to transformers: without a ``PackedConfig`` that is one
        with another config, one that goes elsewhere than to the CPU, and one whose activations are
        quantized.
    """
    section = _own_section(config)
    if section is None:
        return None
    if isinstance(given, PackedConfig):
        return dict(given.to_dict())
    if given is not None or (form := _format(section)) is None:
        return None
    name = config.name_or_path or type(config).__name__
    reason = _left_to_transformers(config, device_map) or form.reason_unpacked(section)
    if reason is not None:
        _log.info("%s is read by transformers, not packed by mlcalib: %s", name, reason)
        return None
    _log.info("%s is read by mlcalib: its weights stay packed", name)
    return {"quant_method": _METHOD, "instead_of": section}


def _own_section(config: Any) -> dict[str, Any] | None:
    """Return the ``quantization_config`` of a config, as transformers looks for it."""
    section = getattr(config, "quantization_config", None)
    section = section or getattr(config.get_text_config(decoder=True), "quantization_config", None)
    return section if isinstance(section, dict) else None


def _format(section: dict[str, Any]) -> Format | None:
    """Return the format of a folder whose codes mlcalib reads, or None."""
    try:
        form = find_format(section)
    except ValueError as error:
        _log.info("a checkpoint is read by transformers, not packed by mlcalib: %s", error)
        return None
    return form if form is not None and form.codes is not None and form.file is None else None


def _left_to_transformers(config: Any, device_map: Any) -> str | None:
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map or "cpu"]
    for place in map(str, places):
        # "auto" and its like are the CPU where there is nothing else.
        named = place in ("auto", "balanced", "balanced_low_0", "sequential")
        if place != "cpu" and (not named or torch.accelerator.is_available()):
            return f"it goes to {place}, and packed weights run on the CPU"
    if compat.is_distributed(config):
        return "it is distributed"
    return None


@register_quantization_config(_METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """Asks ``from_pretrained`` to keep the weights of a quantized checkpoint packed (on the CPU).

    It takes ``mlcalib.register_packed()`` before. Without this config, checkpoints that cannot be
    are left to transformers' own readers.

    Attributes:
        instead_of: the section of config.json for which mlcalib stands in, until it finds that it
            cannot hold the checkpoint; None where it shall or fail.
        file: a GGUF file to read in place of the files that transformers finds.
    """

    def __init__(
        self, *, instead_of: dict[str, Any] | None = None, file: str | None = None, **kwargs: Any
    ) -> None:
        """Take no other options.

        Raises:
            TypeError: there are some.
        """
        if options := kwargs.keys() - {"quant_method"}:
            raise TypeError(f"PackedConfig takes no options, but was given {', '.join(options)}")
        self.quant_method = _METHOD
        self.instead_of = instead_of
        self.file = file


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

    def preprocess_model(self, model: "PreTrainedModel", *arguments: Any, **named: Any) -> None:
        """Replace modules, or become the reader that transformers has for the checkpoint."""
        section = self.quantization_config.instead_of
        try:
            super().preprocess_model(model, *arguments, **named)
        except (ValueError, NotImplementedError) as error:
            if section is None:
                raise
            _log.info("%s is read by transformers after all: %s", model.name_or_path, error)
            theirs = compat.their_reader(section, named.get("device_map"))
            model.config.quantization_config = theirs.quantization_config
            # from_pretrained goes on with the object that it has.
            self.__class__, self.__dict__ = type(theirs), theirs.__dict__
            self.preprocess_model(model, *arguments, **named)

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: list[str] | None, **_: Any
    ) -> None:
        """Replace modules; transformers then loads what is not packed."""
        self._checkpoint = _opened(self.quantization_config.file, checkpoint_files)
        linears = _module_names(model, self._checkpoint.packable)
        experts = any(re.search(r"\.experts\.\d+\.", module) for module in linears)
        # Nothing is changed before all is checked.
        _check(_unfused(copy.deepcopy(model)) if experts else model, linears)
        if self._checkpoint.format.tensors_decide(self._checkpoint.section):
            with torch.device("cpu"):  # not meta, where transformers makes the model
                for name in self._checkpoint.linears:
                    self._checkpoint.linear(name)
        if experts:
            _unfused(model)
        for module, name in linears.items():
            linear = model.get_submodule(module)
            packed = PackedLinear(
                linear.in_features, linear.out_features, self._checkpoint.specs[name], linear.bias
            )
            model.set_submodule(module, packed)
        compat.untie(model, [f"{module}.weight" for module in linears])
        self._modules = {name: module for module, name in linears.items()}
        parts = {
            re.escape(tensor.rpartition(".")[2])
            for tensor in self._checkpoint.files.keys() - set(self._checkpoint.others)
        }
        compat.expect_unread(model, rf"\.({'|'.join(sorted(parts))})$")  # they are read below

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


def _opened(file: str | None, files: list[str] | None) -> Checkpoint:
    """Open a GGUF file, or the checkpoint whose files transformers found."""
    if file is not None:
        return open_checkpoint(file)
    if not files:
        raise ValueError("there are no files to read: a state_dict was given")
    checkpoint = open_checkpoint(Path(files[0]).parent)
    if not set(map(str, checkpoint.files.values())) <= set(map(str, files)):
        raise ValueError(f"{files[0]} is not among the checkpoint's own files")
    return checkpoint


def _unfused(model: "PreTrainedModel") -> "PreTrainedModel":
    try:
        unfuse(model, find_adapter(type(model).__name__))
    except NotImplementedError:
        unfuse_all(model)
    return model


def _module_names(model: "PreTrainedModel", linears: Iterable[str]) -> dict[str, str]:
    """Return module of the model → what the checkpoint calls it."""
    try:
        renamings = find_adapter(type(model).__name__).saved_names
    except NotImplementedError:
        rules, found = LoadingRules(model), {}
        for name in linears:
            key, pattern = rules.target(f"{name}.weight")
            found[name if pattern else key.removesuffix(".weight")] = name
        return found
    return {_module_name(name, renamings): name for name in linears}


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
