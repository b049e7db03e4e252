"""What a user asks of a quantization, checked against a model before any forward."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mlcalib._core import GridSpec
from mlcalib.checkpoints.check import foresee
from mlcalib.checkpoints.held import common_dtype
from mlcalib.common.gguf_types import BLOCK_TYPES, MIXES
from mlcalib.common.hub import hub_name
from mlcalib.common.ranks import Ranks
from mlcalib.formats import Format, formats, types_in_mix
from mlcalib.models import Adapter
from mlcalib.models.own_rules import TransposedLinear
from mlcalib.quantization.cache_ranges import caches
from mlcalib.quantization.overrides import Override, resolve
from mlcalib.quantization.prefixes import Mixture
from mlcalib.quantization.variant import Variant
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.statistics import compares

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Recipe:
    """How a model is to be quantized.

    Attributes:
        quantizer: what solves.
        exceptions: linear → what solves it instead, or None to leave it in floating point.
        checkpoint_format: how linears are to be held.
        specs: the grid of each linear that is quantized.
        bits_per_weight: what a quantized weight takes in the checkpoint format on average, with
            scales and zero points; see ``Format.bits``.
        description: what was asked for, for the records; JSON types.
        static_inputs: whether a format stores the ranges of inputs.
        activation_clip: the share of each language's values that these may leave outside.
        kv_cache: whether the ranges of keys and values are stored.
    """

    quantizer: Quantizer
    exceptions: Mapping[str, Quantizer | None]
    checkpoint_format: Format
    specs: Mapping[str, GridSpec]
    bits_per_weight: float
    description: dict[str, Any]
    static_inputs: bool = False
    activation_clip: float = 0.0
    kv_cache: bool = False

    def variant(self, mixture: Mixture) -> Variant:
        """Return the one way to quantize that this is, on a mixture of text."""
        return Variant(
            self.quantizer,
            self.exceptions,
            mixture,
            static_inputs=self.static_inputs,
            activation_clip=self.activation_clip,
            kv_cache=self.kv_cache,
        )


def make_recipe(  # noqa: PLR0913 - what a quantization is made of
    model: "PreTrainedModel",
    adapter: Adapter,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    name: str,
    dtype: torch.dtype,
    method: str,
    propagate: str | None,
    format: str,  # noqa: A002
    further: Sequence[str] = (),
    activation_clip: float = 0.0,
    kv_cache: str | None = None,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    options: Mapping[str, Any],
) -> Recipe:
    """Check what a user asks for.

    Args:
        model: with experts unfused; its weights are not read.
        adapter: its family.
        tokenizer: its tokenizer.
        name: of the model, for the records.
        dtype: of its weights.
        method: name of a quantizer.
        propagate: ``quantized`` or ``float``; None without calibration.
        format: the checkpoint format.
        further: others that are to hold the same grids.
        activation_clip: see ``mlcalib.quantize``.
        kv_cache: see ``mlcalib.quantize``.
        ignore: patterns of linears that stay in floating point.
        overrides: pattern → options of the linears that it matches.
        options: of the quantizer.

    Raises:
        ValueError: see ``mlcalib.quantize``.
    """
    kind = quantizers.get(method)
    checked = kind.Options(**options)
    forms = {each: formats.get(each)() for each in (format, *further)}
    static = [called for called, form in forms.items() if form.static_inputs]
    calibrated = propagate is not None
    _check_static(static, activation_clip, calibrated=calibrated, cached=kv_cache is not None)
    if kv_cache is not None:
        _check_cache(kv_cache, model, adapter, forms, calibrated=calibrated)
    scale_dtype = common_dtype(list(forms.values()), dtype)
    shapes = {
        layer: (linear.out_features, linear.in_features)
        for layer, linear in adapter.named_linears(model)
    }
    found: list[Override] = []
    if checked.mix and overrides:
        raise ValueError(
            f"mix '{checked.mix}' chooses the grid of every linear; leave overrides "
            f"({', '.join(overrides)}) or the mix out."
        )
    if ignore or overrides:
        found = resolve(kind, options, ignore, overrides or {}, list(shapes))
    quantizer = kind(checked, scale_dtype)
    exceptions = _mixed(model, quantizer, shapes)
    for override in found:
        own = None
        if override.options is not None:
            own = kind(override.options, scale_dtype)
        exceptions.update(dict.fromkeys(override.linears, own))
    for layer, first in adapter.places.items():
        if exceptions.get(layer, quantizer) is not exceptions.get(first, quantizer):
            raise ValueError(
                f"{layer} and {first} are one weight, but an override takes only one of them; "
                "write a pattern that takes both, or none."
            )
    solvers = {layer: exceptions.get(layer, quantizer) for layer in shapes}
    exceptions |= dict.fromkeys(adapter.places)  # the first of their places is solved
    specs = {layer: solver.spec for layer, solver in solvers.items() if solver is not None}
    left = [layer for layer in shapes if layer not in specs]
    for called, form in forms.items():
        _check_transposed(model, specs, called, form)
        form.check_numbers(specs)
        form.check(specs, shapes)
        form.check_model(model.config, type(model).__name__, tokenizer)
        foresee(form, specs, shapes, quantizer.order, left, dtype)
    description: dict[str, Any] = {
        "model": hub_name(name),
        "method": method,
        "options": checked.model_dump(),
        "overrides": [override.describe() for override in found],
        "order": quantizer.order,
        "propagate": propagate,
        "format": format,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if static or kv_cache:
        description["activation_clip"] = activation_clip
    if kv_cache:
        description["kv_cache"] = kv_cache
    bits = bits_per_weight(forms[format], specs, shapes)
    return Recipe(
        quantizer,
        exceptions,
        forms[format],
        specs,
        bits,
        description,
        static_inputs=bool(static),
        activation_clip=activation_clip,
        kv_cache=kv_cache is not None,
    )


def _check_cache(
    kv_cache: str,
    model: "PreTrainedModel",
    adapter: Adapter,
    forms: Mapping[str, Format],
    *,
    calibrated: bool,
) -> None:
    """Refuse a cache in other numbers, and where nothing could hold or show its ranges."""
    if kv_cache != "fp8":
        raise ValueError(f"kv_cache is '{kv_cache}', expected 'fp8', or None for no ranges.")
    if lacking := [called for called, form in forms.items() if not form.kv_cache]:
        raise ValueError(
            f"{lacking[0]} has no place for the scales of keys and values; leave kv_cache out, or "
            "give a format of compressed-tensors."
        )
    if not calibrated:
        raise ValueError(
            "kv_cache='fp8' stores ranges of keys and values, which calibration text shows; pass "
            "calibration=mlcalib.calibration(...)."
        )
    blocks = [block for _, block in adapter.named_blocks(model)]
    if not any(caches(module) for block in blocks for module in block.modules()):
        raise ValueError(
            f"{type(model).__name__} has no attention with keys and values (k_proj and v_proj, or "
            "qkv_proj), whose cache readers of compressed-tensors would round; leave kv_cache out."
        )


def _check_static(static: Sequence[str], clip: float, *, calibrated: bool, cached: bool) -> None:
    """Refuse ranges of inputs that no text shows, and a share that means nothing."""
    if not 0 <= clip < 1:
        raise ValueError(
            f"activation_clip is {clip}, expected a share of activations, from 0 to below 1."
        )
    if clip and not (static or cached):
        raise ValueError(
            f"activation_clip is {clip}, but the format stores no ranges of activations; leave it "
            "out, or give format='compressed-tensors-fp8-static' or 'compressed-tensors-nvfp4-w4a4'"
            " (scheme='FP8' or 'NVFP4')."
        )
    if static and not calibrated:
        raise ValueError(
            f"{static[0]} stores ranges of activations, which calibration text shows; pass "
            "calibration=mlcalib.calibration(...) and a method that uses it, such as gptq."
        )


def bits_per_weight(
    form: Format, specs: Mapping[str, GridSpec], shapes: Mapping[str, tuple[int, int]]
) -> float:
    """Return what a quantized weight takes in a format on average; see ``Format.bits``.

    Args:
        form: the format.
        specs: linear → its grid, of those that are quantized.
        shapes: linear → (out, in), at least of these.
    """
    bits = sum(form.bits(spec, *shapes[name]) for name, spec in specs.items())
    weights = sum(shapes[name][0] * shapes[name][1] for name in specs)
    return bits / weights if weights else 0.0


def _mixed(
    model: "PreTrainedModel", quantizer: Quantizer, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Quantizer | None]:
    """Return what solves the linears to which a mix gives other grids than to most."""
    if not (mix := quantizer.options.mix):
        return {}
    solvers: dict[str, Quantizer | None] = {}
    of_type: dict[str, Quantizer] = {MIXES[mix]: quantizer}
    type_of = types_in_mix(mix, model.config, type(model).__name__)
    for layer, (_, columns) in shapes.items():
        chosen = type_of(layer, columns)
        if chosen not in of_type:
            options = quantizer.options.of_type(BLOCK_TYPES[chosen])
            of_type[chosen] = type(quantizer)(options, quantizer.spec.scale_dtype)
        solvers[layer] = of_type[chosen]
    return solvers


def _check_transposed(
    model: "PreTrainedModel", layers: Iterable[str], name: str, checkpoint_format: Format
) -> None:
    """Refuse codes for weights that readers do not look for codes of."""
    found = [each for each in layers if isinstance(model.get_submodule(each), TransposedLinear)]
    if found and checkpoint_format.codes is not None and checkpoint_format.file is None:
        raise ValueError(
            f"{found[0]} and {len(found) - 1} others of {type(model).__name__} are of the class "
            f"Conv1D, which readers of {name} take for no linear: they would not load the codes. "
            "Give format='dense' or 'gguf'."
        )


def check_method(
    method: str, propagate: str, *, calibrated: bool, options: Mapping[str, Any]
) -> None:
    """Refuse what no model could make right; reads no files.

    Raises:
        ValueError: an unknown method, option or propagation, or a method that needs calibration.
    """
    if propagate not in ("quantized", "float"):
        raise ValueError(f"propagate is '{propagate}', expected 'quantized' or 'float'.")
    kind = quantizers.get(method)
    quantizer = kind(kind.Options(**options), torch.float32)
    if kind.needs and not calibrated:
        raise ValueError(
            f"{method} needs calibration text; pass calibration=mlcalib.calibration(...)."
        )
    if propagate == "float" and compares(quantizer.kinds):
        raise ValueError(
            f"{method} with {options} compares the quantized model's activations with the float "
            "model's, but propagate='float' gathers the latter alone; pass propagate='quantized'."
        )


def check_ranks(recipe: Recipe, ranks: Ranks) -> None:
    """Refuse what only a process by itself can do.

    Raises:
        NotImplementedError: ranges of keys and values.
    """
    if recipe.kv_cache and not ranks.alone:
        raise NotImplementedError(
            "kv_cache='fp8' looks at keys and values, which are not shared over ranks; leave it "
            f"out, or start one process instead of {ranks.size}."
        )
