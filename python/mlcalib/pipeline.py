"""The heart: a model in, block by block, a quantized model out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm.auto import tqdm

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.flow import BlockStatistics, Flow, Stopwatch
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
from mlcalib.overrides import Override, resolve
from mlcalib.quantized_model import QuantizedModel
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.scaling import scale_block
from mlcalib.solving import Solved, check_weights, input_ranges, solve_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Propagate = Literal["quantized", "float"]


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
    if propagate not in ("quantized", "float"):
        raise ValueError(f"propagate is '{propagate}', expected 'quantized' or 'float'.")
    kind = quantizers.get(method)
    checked = kind.Options(**options)
    if kind.needs and calibration is None:
        raise ValueError(
            f"{method} needs calibration text; pass calibration=mlcalib.calibration_sets(...)."
        )
    checkpoint_format = formats.get(format)()
    found: list[Override] = []
    if skip or overrides:
        found = resolve(kind, options, skip, overrides or {}, _linear_names(model))

    loading = Stopwatch()
    with loading.timed("load"):
        name, adapter, live, tokenizer = _open(model, tokenizer, dtype)
        unfuse(live, adapter)

    quantizer = kind(checked, checkpoint_format.scale_dtype(live.dtype))
    exceptions: dict[str, Quantizer | None] = {}
    for override in found:
        own = None
        if override.options is not None:
            own = kind(override.options, quantizer.spec.scale_dtype)
        exceptions.update(dict.fromkeys(override.linears, own))
    shapes = {
        layer: (linear.out_features, linear.in_features)
        for layer, linear in adapter.named_linears(live)
    }
    solvers = {layer: exceptions.get(layer, quantizer) for layer in shapes}
    specs = {layer: solver.spec for layer, solver in solvers.items() if solver is not None}
    checkpoint_format.check(specs, shapes)
    checkpoint_format.check_model(live.config, type(live).__name__, tokenizer)
    solved = quantize_blocks(
        live,
        adapter,
        quantizer,
        calibration,
        exceptions=exceptions,
        propagate=propagate,
        progress=progress,
    )
    recipe = {
        "model": name,
        "method": method,
        "options": checked.model_dump(),
        "overrides": [override.describe() for override in found],
        "order": quantizer.order,
        "propagate": propagate if calibration is not None else None,
        "dtype": str(live.dtype).removeprefix("torch."),
    }
    return QuantizedModel(
        live,
        tokenizer,
        solved.linears,
        solved.losses,
        recipe,
        calibration,
        loading.seconds | solved.stopwatch.seconds,
        solved.expert_tokens,
        solved.ranges,
        solved.scales,
    )


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
    exceptions = exceptions or {}
    skipped = {name for name, solver in exceptions.items() if solver is None}
    solved = Solved()
    flow = Flow(model, adapter, calibration, solved.stopwatch) if calibration else None
    blocks = adapter.named_blocks(model)
    with tqdm(blocks, desc="quantizing", unit="block", disable=not progress) as bar:
        for name, block in bar:
            statistics: BlockStatistics = {}
            if flow is not None:
                # Losses need the Gram, the records ranges, whatever the quantizer needs.
                kinds = dict.fromkeys(("gram", "range", *quantizer.needs))
                wanted = quantizer.probe_tokens
                probe = flow.probe(name, wanted) if wanted else None
                statistics = flow.collect(
                    name, block, kinds, skipped=skipped, advance=propagate == "float"
                )
                solved.ranges |= input_ranges(adapter, name, block, statistics)
                if quantizer.scales:
                    with solved.stopwatch.timed("scale"):
                        solved.scales |= scale_block(
                            adapter, name, block, statistics, quantizer, skipped, probe
                        )
            loss = solve_block(adapter, name, block, statistics, quantizer, exceptions, solved)
            if flow is not None and propagate == "quantized":
                flow.advance(name, block)
            bar.set_postfix_str(f"{name.rpartition('.')[2]}, loss/token {loss:.3g}")
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
