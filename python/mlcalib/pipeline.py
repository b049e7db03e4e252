"""The heart: a model in, block by block, a quantized model out."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from tqdm.auto import tqdm

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.flow import BlockStatistics, Flow, Stopwatch
from mlcalib.formats import formats
from mlcalib.models import Adapter, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import architecture, check_source, load_model, load_tokenizer
from mlcalib.quantized_model import QuantizedModel
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.solving import Solved, check_weights, solve_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Propagate = Literal["quantized", "float"]


def quantize(
    model: "str | Path | PreTrainedModel",
    calibration: CalibrationSet | None = None,
    *,
    method: str = "gptq",
    propagate: Propagate = "quantized",
    format: str = "compressed-tensors",  # noqa: A002
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    dtype: str = "auto",
    progress: bool = True,
    **options: Any,
) -> QuantizedModel:
    """Quantize the linears of a model's blocks.

    Args:
        model: a folder, a hub name, a GGUF file, or a transformers model, which is not changed.
        calibration: see ``mlcalib.calibration_sets``; None for methods that need none.
        method: name of a quantizer: ``rtn``, ``gptq``.
        propagate: ``quantized`` gathers a block's statistics behind quantized blocks (two
            forwards), ``float`` behind float ones (one forward).
        format: the checkpoint format to be saved: what it cannot hold is refused now.
        tokenizer: needed with a transformers model, to be saved with it.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; of a model that is loaded here.
        progress: show a bar.
        options: of the quantizer: ``bits``, ``group_size``, ``symmetric``, ``range``, …

    Raises:
        ValueError: an unknown method, format or option; a format that cannot hold the grids; NaN or
            Inf in a layer; a damaged checkpoint.
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

    loading = Stopwatch()
    with loading.timed("load"):
        name, adapter, live, tokenizer = _open(model, tokenizer, dtype)
        unfuse(live, adapter)

    quantizer = kind(checked, checkpoint_format.scale_dtype(live.dtype))
    shapes = {
        layer: (linear.out_features, linear.in_features)
        for layer, linear in adapter.named_linears(live)
    }
    checkpoint_format.check(quantizer.spec, shapes)
    solved = quantize_blocks(
        live, adapter, quantizer, calibration, propagate=propagate, progress=progress
    )
    recipe = {
        "model": name,
        "method": method,
        "options": checked.model_dump(),
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
    )


@torch.no_grad()
def quantize_blocks(
    model: "PreTrainedModel",
    adapter: Adapter,
    quantizer: Quantizer,
    calibration: CalibrationSet | None,
    *,
    propagate: Propagate,
    progress: bool,
) -> Solved:
    """Quantize every linear of the model's blocks; their weights become the dequantized ones.

    Args:
        model: its blocks' linears get new weights; nothing else changes.
        adapter: its family.
        quantizer: what solves.
        calibration: None for a quantizer that needs none.
        propagate: ``float`` gathers the statistics of a block from the float model; ``quantized``
            from the model whose earlier blocks are quantized, at the price of a second forward.
        progress: show a bar.

    Raises:
        ValueError: NaN or Inf in weights or activations; names the layer.
        torch.linalg.LinAlgError: a Gram that is not positive definite; names the layer.
    """
    check_weights(model, adapter)
    solved = Solved()
    flow = Flow(model, adapter, calibration, solved.stopwatch) if calibration else None
    blocks = adapter.named_blocks(model)
    with tqdm(blocks, desc="quantizing", unit="block", disable=not progress) as bar:
        for name, block in bar:
            statistics: BlockStatistics = {}
            if flow is not None:
                kinds = dict.fromkeys(("gram", *quantizer.needs))  # losses need the Gram
                statistics = flow.collect(name, block, kinds, advance=propagate == "float")
            loss = solve_block(adapter, name, block, statistics, quantizer, solved)
            if flow is not None and propagate == "quantized":
                flow.advance(name, block)
            bar.set_postfix_str(f"{name.rpartition('.')[2]}, loss/token {loss:.3g}")
    return solved


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
    return name, adapter, _shared_copy(model).eval(), tokenizer


def _shared_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """Copy the modules but not the parameters, so that the caller's model keeps its weights."""
    shared: dict[int, nn.Parameter] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)
