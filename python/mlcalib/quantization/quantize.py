"""The heart: a model in, block by block, a quantized model out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.formats import formats
from mlcalib.models import Adapter, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import (
    architecture,
    check_source,
    load_model,
    load_tokenizer,
    shared_copy,
    skeleton,
)
from mlcalib.quantization.block_pass import Propagate
from mlcalib.quantization.overrides import resolve
from mlcalib.quantization.propagation import BlockStatistics, Flow, mixture_of
from mlcalib.quantization.quantized_model import QuantizedModel
from mlcalib.quantization.recipe import check_method, make_recipe
from mlcalib.quantization.solve import check_weights, expert_tokens, input_ranges, references
from mlcalib.quantization.variant import Variant
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.statistics import compares

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def quantize(  # noqa: PLR0913 - what a quantization is made of
    model: "str | Path | PreTrainedModel",
    calibration: CalibrationSet | None = None,
    *,
    method: str = "gptq",
    propagate: Propagate = "quantized",
    format: str = "compressed-tensors",  # noqa: A002
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    dtype: str = "auto",
    progress: bool = True,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> QuantizedModel:
    r"""Quantize the linears of a model's blocks.

    Args:
        model: a folder, a hub name, a GGUF file, or a transformers model, which is not changed.
        calibration: see ``mlcalib.calibration_sets``; None for methods that need none.
        method: name of a quantizer: ``rtn``, ``gptq``, ``awq``.
        propagate: ``quantized`` gathers a block's statistics behind quantized blocks (two
            forwards), ``float`` behind float ones (one forward).
        format: the checkpoint format to be saved: what it cannot hold is refused now.
        tokenizer: needed with a transformers model, to be saved with it.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; of a model that is loaded here.
        progress: show a bar.
        skip: patterns (``re.search``) of linears that stay in floating point, e.g.
            ``r"layers\.0\."``.
        overrides: pattern → ``bits``, ``group_size`` or ``symmetric`` of the linears it matches,
            e.g. ``{"down_proj": {"bits": 8}}``. What ``skip`` matches is skipped; otherwise the
            first pattern that matches counts. Several grids in one ``compressed-tensors``
            checkpoint must all be symmetric.
        options: of the quantizer: ``bits``, ``group_size``, ``symmetric``, ``range``, …

    Raises:
        ValueError: an unknown method, format or option; a format that cannot hold the grids; a
            pattern that takes no linear, or only some of those that vLLM and SGLang fuse (q, k and
            v; gate and up; experts); NaN or Inf in a layer; a damaged checkpoint.
        NotImplementedError: an architecture without an adapter.
        torch.linalg.LinAlgError: a Gram that is not positive definite.
    """
    check_method(method, propagate, calibrated=calibration is not None, options=options)
    formats.get(format)
    if skip or overrides:  # what is wrong with patterns is found before the weights are loaded
        kind = quantizers.get(method)
        resolve(kind, options, skip, overrides or {}, _linear_names(model))

    loading = Stopwatch()
    with loading.timed("load"):
        name, adapter, live, tokenizer = _open(model, tokenizer, dtype)
        unfuse(live, adapter)
    recipe = make_recipe(
        live,
        adapter,
        tokenizer,
        name=name,
        dtype=live.dtype,
        method=method,
        propagate=propagate if calibration is not None else None,
        format=format,
        skip=skip,
        overrides=overrides,
        options=options,
    )
    solved = quantize_blocks(
        live,
        adapter,
        recipe.quantizer,
        calibration,
        exceptions=recipe.exceptions,
        propagate=propagate,
        progress=progress,
    )
    return QuantizedModel(
        live,
        tokenizer,
        solved.linears,
        solved.losses,
        recipe.description,
        calibration,
        loading.seconds | solved.stopwatch.seconds,
        solved.expert_tokens,
        solved.ranges,
        solved.scales,
    )


@dataclass
class Solved:
    """What became of a model's blocks.

    Attributes:
        linears: name → codes and grid.
        losses: name → language → tr(D G Dᵀ) per token with that language's Gram; no language
            without calibration, nor one of which an expert saw no token.
        ranges: name → language → least and largest value of its input on that language's text.
        scales: source of a scale group → how its scales were found.
        expert_tokens: expert → language → tokens that were routed to it.
        stopwatch: time per phase (forward, gram, scale, solve, losses).
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    ranges: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    scales: dict[str, dict[str, float]] = field(default_factory=dict)
    expert_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


@torch.no_grad()
def quantize_blocks(
    model: "PreTrainedModel",
    adapter: Adapter,
    quantizer: Quantizer,
    calibration: CalibrationSet | None,
    *,
    exceptions: Mapping[str, Quantizer | None] | None = None,
    propagate: Propagate,
    progress: bool,
) -> Solved:
    """Quantize every linear of the model's blocks; their weights become the dequantized ones.

    Args:
        model: its blocks' linears get new weights; nothing else changes.
        adapter: its family.
        quantizer: what solves.
        calibration: None for a quantizer that needs none.
        exceptions: linear → what solves it instead, or None to leave it in floating point.
        propagate: ``float`` gathers the statistics of a block from the float model; ``quantized``
            from the model whose earlier blocks are quantized, at the price of a second forward.
        progress: show a bar.

    Raises:
        ValueError: NaN or Inf in weights or activations; names the layer.
        torch.linalg.LinAlgError: a Gram that is not positive definite; names the layer.
    """
    check_weights(model, adapter)
    mixture = mixture_of(calibration) if calibration else {}
    variant = Variant(quantizer, exceptions or {}, mixture)
    solved = Solved()
    flow = None
    if calibration:
        compared = compares(variant.kinds)
        flow = Flow(model, adapter, calibration, solved.stopwatch, compares=compared)
    blocks = adapter.named_blocks(model)
    with tqdm(blocks, desc="quantizing", unit="block", disable=not progress) as bar:
        for name, block in bar:
            statistics: BlockStatistics = {}
            probe = variant.probe(flow, name)
            if flow is not None:
                statistics = flow.collect(
                    name,
                    block,
                    variant.kinds,
                    skipped=variant.skipped,
                    advance=propagate == "float",
                )
                solved.ranges |= input_ranges(adapter, name, block, statistics)
                solved.expert_tokens |= expert_tokens(adapter, name, block, statistics)
            measured = references(statistics)
            done = variant.solve(
                adapter, name, block, statistics, measured, probe, solved.stopwatch
            )
            solved.linears |= done.linears
            solved.losses |= done.losses
            solved.scales |= done.scales
            if flow is not None:
                if propagate == "quantized":
                    flow.advance(name, block)
                flow.turn()
            bar.set_postfix_str(f"{name.rpartition('.')[2]}, loss/token {done.loss:.3g}")
    return solved


def _linear_names(model: "str | Path | PreTrainedModel") -> list[str]:
    """Return the names of all linears that can be quantized; reads no weights."""
    if isinstance(model, str | Path):
        check_source(str(model))
        adapter, bare = find_adapter(architecture(str(model))), skeleton(str(model))
    else:
        adapter, bare = find_adapter(type(model).__name__), shared_copy(model)
    unfuse(bare, adapter)
    return [name for name, _ in adapter.named_linears(bare)]


def _open(
    model: "str | Path | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    dtype: str,
) -> "tuple[str, Adapter, PreTrainedModel, PreTrainedTokenizerBase]":
    if isinstance(model, str | Path):
        source = str(model)
        check_source(source)
        adapter = find_adapter(architecture(source))
        return source, adapter, load_model(source, dtype), tokenizer or load_tokenizer(source)
    if tokenizer is None:
        raise ValueError("A model was given without its tokenizer; pass tokenizer=.")
    adapter = find_adapter(type(model).__name__)
    name = model.config.name_or_path or type(model).__name__
    return name, adapter, shared_copy(model).eval(), tokenizer
