"""A quantized model in a few lines, and as HTML: recipe, size, losses, what to look at."""

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup

from mlcalib._core import QuantizedLinear
from mlcalib.checkpoints.record import language_losses
from mlcalib.formats import formats
from mlcalib.notebook import html
from mlcalib.quantizers import quantizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WORST = 5  # layers that are shown


def headline(record: Mapping[str, Any]) -> str:
    """Say model, method, grid and calibration; ``record`` is what ``mlcalib.json`` has."""
    recipe, calibration = record["recipe"], record["calibration"]
    options = recipe["options"]
    groups = (
        "a scale per row" if options["group_size"] == -1 else f"groups of {options['group_size']}"
    )
    kind = "symmetric" if options["symmetric"] else "asymmetric"
    if mix := options.get("mix"):
        kind += f", mix {mix}"
    text = "without text" if calibration is None else f"calibrated on {calibration['set']}"
    return (
        f"{recipe['model']}: {recipe['method']}, {options['bits']} bits, {groups}, {kind}, {text}"
    )


def size_line(
    model: "PreTrainedModel", linears: Mapping[str, QuantizedLinear], checkpoint_format: str
) -> str:
    """Say how many bits a quantized weight takes, and how many bytes the checkpoint takes, about.

    A quantized weight takes its code, and its part of the scale and of the zero point of its group.
    Other tensors keep their dtype. Formats pad and pack a little differently.
    """
    weights = sum(each.codes.numel() for each in linears.values())
    codes = sum(_bits(each) for each in linears.values()) / 8
    whole = sum(each.numel() * each.element_size() for each in model.parameters())
    rest = whole - weights * model.dtype.itemsize
    kind = formats.get(checkpoint_format)
    if kind.codes is None and kind.file is None:
        return f"{len(linears)} linears; {whole / 1e6:,.1f} MB, as {checkpoint_format} holds floats"
    return (
        f"{len(linears)} linears, {8 * codes / weights:.2f} bits per quantized weight; about "
        f"{(codes + rest) / 1e6:,.1f} MB as {checkpoint_format} (float: {whole / 1e6:,.1f} MB)"
    )


def as_text(record: Mapping[str, Any], size: str) -> str:
    """Return two or three lines without tensors."""
    losses = language_losses(record)
    lines = [f"QuantizedModel {headline(record)}", size]
    if losses:
        best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        lines.append(
            f"loss per token, all linears: {losses[best]:.4g} in {best} to {losses[worst]:.4g} in "
            f"{worst}"
        )
    if record["warnings"]:
        lines[-1] += f"; {len(record['warnings'])} warnings, see summary()"
    return "\n".join(lines)


def as_html(record: Mapping[str, Any], size: str) -> str:
    """Return what a notebook shows."""
    recipe = record["recipe"]
    options = ", ".join(f"{name} {value}" for name, value in _chosen(recipe).items())
    spent = ", ".join(f"{phase} {time:.1f} s" for phase, time in record["seconds"].items())
    facts = {"options": options, "size": size, "format": recipe["format"], "time": spent}
    for override in recipe["overrides"]:
        changed = override["options"] or "in floating point"
        facts[f"{override['pattern']} ({len(override['linears'])} linears)"] = str(changed)
    return html.page(
        html.heading(headline(record)),
        *(html.listing([text], name) for name, text in facts.items()),
        _languages(language_losses(record)),
        _worst(record["layers"]),
        html.listing(record["warnings"], "warning"),
    )


def _chosen(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not the quantizer's defaults, and not in the headline."""
    usual = quantizers.get(recipe["method"]).Options().model_dump()
    told = ("bits", "group_size", "symmetric")
    changed = {
        name: value
        for name, value in recipe["options"].items()
        if name not in told and value != usual.get(name)
    }
    return changed or {"the defaults of": recipe["method"]}


def _bits(linear: QuantizedLinear) -> int:
    spec, groups = linear.grid.spec, linear.grid.scale.numel()
    groups = 1 if spec.per_tensor else groups
    if spec.super_block:
        blocks = groups * spec.group_size // spec.super_block
        numbers = groups * spec.scale_bits + blocks * 8 * spec.scale_dtype.itemsize
        return linear.codes.numel() * spec.bits + numbers * (1 + spec.has_minima)
    zeros = 0 if spec.symmetric else groups * spec.bits
    if spec.scale_dtype == torch.uint8:
        zeros += 32 * -(-groups // 256)  # what the scales' own blocks are multiples of
    return linear.codes.numel() * spec.bits + groups * 8 * spec.scale_dtype.itemsize + zeros


def _languages(losses: Mapping[str, float]) -> Markup:
    if not losses:
        return Markup()
    mean, most = fmean(losses.values()), max(losses.values())
    rows = [
        [code, f"{loss:.4g}", f"{loss / mean if mean else 1:.2f}", html.bar(loss / (most or 1))]
        for code, loss in losses.items()
    ]
    return html.table(["language", "loss per token, all linears", "of the mean", ""], rows)


def _worst(layers: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return the linears that lose most, in the mean of the languages that reached them."""
    losses = {
        name: layer["loss_per_token"] for name, layer in layers.items() if layer["loss_per_token"]
    }
    if not losses:
        return Markup()
    means = {name: fmean(by.values()) for name, by in losses.items()}
    total = sum(means.values())
    rows: list[list[str]] = []
    for name in sorted(means, key=means.__getitem__, reverse=True)[:_WORST]:
        worst = max(losses[name], key=losses[name].__getitem__)
        share = f"{means[name] / total:.1%}" if total else "0.0%"
        rows.append([name, f"{means[name]:.4g}", share, f"{worst} {losses[name][worst]:.4g}"])
    return html.table(["linears that lose most", "mean loss", "of all", "most in"], rows)
