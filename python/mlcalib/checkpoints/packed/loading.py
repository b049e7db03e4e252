"""``mlcalib.load``: a quantized checkpoint as a model on packed weights; ``load_to_run``."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib.checkpoints import FileCheckpoint, open_checkpoint
from mlcalib.checkpoints.expected import check_model
from mlcalib.checkpoints.packed.linear import PackedLinear
from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common import compat
from mlcalib.common.hub import located, model_folder
from mlcalib.common.safetensors_read import read_json
from mlcalib.formats import find_format, stored_section
from mlcalib.models.device import CPU, choose_device
from mlcalib.models.kv_cache import round_cache
from mlcalib.models.loading import (
    architecture,
    check_dtype,
    check_source,
    load_model,
    model_config,
    model_loader,
    stored_dtype,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_log = logging.getLogger(__name__)

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    folder: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    *,
    revision: str | None = None,
    token: str | None = None,
) -> "PreTrainedModel":
    """Load a quantized checkpoint; on the CPU its quantized linears keep packed weights.

    They are ``PackedLinear``, filled one after the other, so that loading takes little more memory
    than the model itself. Embeddings, norms and linears that are not quantized are as stored. The
    model is for inference; to save or quantize it again, use the folder. Packed weights run on the
    CPU only, so on a GPU the linears hold dequantized weights, which a warning says; and so they do
    everywhere where the format has NF4 or FP4 numbers, and K-quants of GGUF files. Keys and values
    are rounded to FP8 where the checkpoint has scales of them.

    Args:
        folder: a checkpoint in a format that keeps codes (``compressed-tensors``, ``gptq``,
            ``awq``; or a GGUF file), mlcalib's or another tool's; or the hub name of one.
        dtype: of activations and of what is not quantized: ``auto`` (the checkpoint's),
            ``float32``, ``bfloat16`` or ``float16``. Scales stay what they are.
        device: where to: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU, where there is one and
            mlcalib was built for it).
        revision: see ``mlcalib.quantize``.
        token: see ``mlcalib.quantize``.

    Raises:
        FileNotFoundError: no such folder, or a hub name that cannot be fetched and is not cached.
        ValueError: the folder is invalid, not quantized, or not as its config describes; an
            unknown dtype or device.
        NotImplementedError: its format keeps no codes; experts that are packed in another way.
    """
    from mlcalib.checkpoints.packed.config import PackedConfig

    if dtype not in _DTYPES:
        raise ValueError(f"dtype is '{dtype}', expected one of: {', '.join(_DTYPES)}.")
    place = choose_device(device)
    if Path(folder).suffix != ".gguf":
        folder = model_folder(str(located(folder, revision, token)))
    # transformers would name neither the folder nor what is wrong with it
    checkpoint = open_checkpoint(folder)
    if isinstance(checkpoint, FileCheckpoint):
        return _on(_load_file(checkpoint, dtype), place)
    config = model_config(str(folder))
    if checkpoint.format.dequantizes:
        _log.warning(
            "%s: mlcalib has no product of packed weights of its format; its linears hold "
            "dequantized ones",
            folder,
        )
        return _load_dequantized(Path(folder), config, dtype, place)
    config.quantization_config = PackedConfig().to_dict()
    model: PreTrainedModel = model_loader(config).from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True
    )
    _round_cache(model, Path(folder), checkpoint.section)
    return _on(model, place)


def load_to_run(
    source: str, dtype: str = "auto", device: torch.device | None = None
) -> "PreTrainedModel":
    """Load a model as ``load_model`` does, but on packed weights where it has them.

    So a quantized checkpoint is evaluated within its own memory. W8A8 ones round activations as
    transformers does; what cannot be held packed is read by transformers, but NF4 and FP4 are
    dequantized, with activations rounded where the checkpoint says so. Packed weights run on the
    CPU only: elsewhere they are dequantized when they are there, which a warning says.

    Args:
        source: a folder, a hub name or a GGUF file (whose weights are dequantized).
        dtype: see ``load_model``.
        device: where to; None is the CPU.

    Raises:
        FileNotFoundError, ValueError: see ``load_model``.
    """
    check_source(source)
    if source.endswith(".gguf"):
        return load_model(source, dtype, device)

    from mlcalib.checkpoints.packed.config import packed_section

    folder = model_folder(source)
    stored, place = stored_section(folder, read_json(folder / "config.json"))
    if stored is None:
        own_head = check_model(StoredWeights(folder, torch.float32))
        config = model_config(source)
        config.tie_word_embeddings = compat.ties_embeddings(config) and not own_head
        return load_model(source, dtype, device, config)
    config = model_config(source)
    if place != "config.json":  # where transformers does not look
        config.quantization_config = stored
    section = packed_section(config, None, None)
    if section is not None:
        config.quantization_config = section
        return _on(load_model(source, dtype, None, config), device or CPU)
    form = find_format(stored)
    dequantizes = form is not None and form.dequantizes
    if dequantizes or stored.get("quant_method") not in compat.quantization_methods():
        return _load_dequantized(folder, config, dtype, device)
    model = load_model(source, dtype, device, config)
    _round_cache(model, folder, stored)
    return model


def _on(model: "PreTrainedModel", device: torch.device) -> "PreTrainedModel":
    """Return a model on a device; packed linears are dequantized where that is not the CPU."""
    if device.type == "cpu":
        return model
    packed = [
        (name, each) for name, each in model.named_modules() if isinstance(each, PackedLinear)
    ]
    for name, linear in packed:
        model.set_submodule(name, linear.dequantized(model.dtype, device))
    if packed:
        _log.warning(
            "packed weights run on the CPU only: on %s %d linears hold dequantized weights in %s",
            device,
            len(packed),
            str(model.dtype).removeprefix("torch."),
        )
    model.hf_quantizer = None  # it would refuse to move what it packed
    return model.to(device)


def _load_dequantized(
    folder: Path, config: "PreTrainedConfig", dtype: str, device: torch.device | None
) -> "PreTrainedModel":
    """Load codes that transformers has no reader for as what they stand for."""
    import transformers

    check_dtype(dtype)
    weights = StoredWeights(folder, torch.float32)
    kind = stored_dtype(folder, dtype)
    del config.quantization_config
    model: PreTrainedModel = getattr(transformers, architecture(str(folder))).from_pretrained(
        None,
        config=config,
        state_dict={name: tensor.to(kind) for name, tensor in weights.read(weights.names)},
        dtype=kind,
    )
    _round_inputs(model, weights)
    _round_cache(model, folder, weights.section or {})
    return model.to(device or "cpu").eval()


def _round_inputs(model: "PreTrainedModel", weights: StoredWeights) -> None:
    """Let linears round their inputs, where the format of a checkpoint has static ranges of them.

    Raises:
        NotImplementedError: the model has no module of its own for a linear of the checkpoint.
    """
    checkpoint = weights.packed
    if checkpoint is None or not checkpoint.format.static_inputs:
        return
    for name, names in checkpoint.linears.items():
        small = {each: checkpoint.tensor(each) for each in names if "input" in each}
        rounding = checkpoint.format.input_rounding(name, small)
        try:
            linear = model.get_submodule(name)
        except AttributeError as error:
            raise NotImplementedError(
                f"{weights.folder}: {type(model).__name__} has no module {name}, whose input is to "
                "be rounded; convert the checkpoint to dense to run it on inputs as they are."
            ) from error
        if rounding is not None:
            linear.register_forward_pre_hook(partial(_rounded, rounding))


def _round_cache(model: "PreTrainedModel", folder: Path, section: Mapping[str, Any]) -> None:
    """Let attention round keys and values where the checkpoint has scales of them.

    Not where compressed-tensors does: it knows the cache by another name than transformers 5.23.
    """
    if not section.get("kv_cache_scheme"):
        return
    weights = StoredWeights(folder, torch.float32)
    ends = (".k_scale", ".v_scale")
    found = {
        name: float(scale)
        for name, scale in weights.read(name for name in weights.names if name.endswith(ends))
    }
    names = dict.fromkeys(name.removesuffix(ends[0]).removesuffix(ends[1]) for name in found)
    if any(hasattr(module, "kv_cache") for module in model.modules()):
        return
    round_cache(model, {name: (found[name + ends[0]], found[name + ends[1]]) for name in names})


def _rounded(
    rounding: Callable[[Tensor], Tensor], _: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return (rounding(args[0]), *args[1:])


def _load_file(checkpoint: FileCheckpoint, dtype: str) -> "PreTrainedModel":
    """Load a format's one file; transformers is given all that is not packed."""
    import transformers

    from mlcalib.checkpoints.packed.config import PackedConfig

    config = checkpoint.contents.config
    (file,) = set(checkpoint.files.values())
    kind = checkpoint.dtype if dtype == "auto" else getattr(torch, dtype)
    state = {name: checkpoint.tensor(name) for name in checkpoint.others}
    dense = checkpoint.linears.keys() - checkpoint.packable.keys()
    state |= {f"{name}.weight": checkpoint.linear(name).dequantize().to(kind) for name in dense}
    if dense:
        _log.warning(
            "%s: mlcalib has no product of packed K-quants; %d of %d linears hold dequantized "
            "weights",
            file,
            len(dense),
            len(checkpoint.linears),
        )
    if checkpoint.packable:
        config.quantization_config = PackedConfig(file=str(file)).to_dict()
    model: PreTrainedModel = getattr(transformers, config.architectures[0]).from_pretrained(
        None, config=config, state_dict=state, dtype=kind
    )
    return model
