"""From a model in memory to a quantized model in memory, a block at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.hub import located
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.formats import formats
from mlcalib.models.device import choose_device, device_name
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.block_steps import Propagate
from mlcalib.quantization.finish import cache_record, merged
from mlcalib.quantization.open_source import open_with_tokenizer
from mlcalib.quantization.prefixes import mixture_of
from mlcalib.quantization.quality import with_quality
from mlcalib.quantization.quantization_job import QuantizationJob
from mlcalib.quantization.quantized_model import QuantizedModel
from mlcalib.quantization.recipe import check_method, make_recipe
from mlcalib.quantization.scheme import choose
from mlcalib.quantization.sink import MemorySink
from mlcalib.quantization.text_check import check_text
from mlcalib.quantization.weight_check import check_block
from mlcalib.quantizers import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def quantize(  # noqa: PLR0913 - what a quantization is made of
    model: "str | Path | PreTrainedModel",
    calibration: CalibrationSet | None = None,
    *,
    method: Method | None = None,
    scheme: str | None = None,
    quality: Literal["fast", "balanced", "best"] | None = None,
    propagate: Propagate | None = None,
    format: str | Sequence[str] | None = None,  # noqa: A002
    activation_clip: float = 0.0,
    kv_cache: Literal["fp8"] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    progress: bool = True,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> QuantizedModel:
    r"""Quantize a model in memory: the weights of all linears in its blocks become codes.

    The calibration text runs through the model block by block, and each linear is quantized so that
    its outputs on that text change as little as possible. Embeddings, norms and the output head
    stay in floating point. ``quantize_checkpoint`` does the same without holding the model in
    memory.

    Args:
        model: a folder with safetensors, a name on the hub, a GGUF file, or a transformers model,
            which is not changed.
        calibration: the text, made by ``mlcalib.calibration``; None for a method that needs none.
        method: a quantizer with its options, e.g. ``mlcalib.GPTQ(bits=4, group_size=64)``,
            ``mlcalib.AWQ(...)``, ``mlcalib.SmoothQuant(...)`` or ``mlcalib.RTN(...)`` (rounding to
            nearest). Or its name (``gptq``, ``awq``, ``smoothquant``, ``rtn`` or a plug-in), with
            options by keyword. A list of two is a composition: ``["awq", "gptq"]`` and
            ``[mlcalib.SmoothQuant(), mlcalib.GPTQ(bits=8)]`` scale channels by the first and solve
            by the second. The default is ``gptq``, or what ``scheme`` says.
        scheme: the numbers of weights and activations: ``W4A16``, ``W4A16_ASYM``, ``W8A16``,
            ``FP8``, ``FP8_DYNAMIC``, ``NF4``, ``NF4_DOUBLE``, ``MXFP4A16``, ``NVFP4A16``, ``NVFP4``
            (all with ``gptq``) or ``W8A8`` (with ``smoothquant`` and the format
            ``compressed-tensors-int8``). It stands for ``bits``, ``symmetric`` and a
            ``group_size``; ``method`` by name, ``group_size`` and other options can be given too.
            ``Q2_K``, ``Q3_K_S``, ``Q3_K_M``, ``Q3_K_L``, ``Q4_K_S``, ``Q4_K_M``, ``Q5_K_S``,
            ``Q5_K_M`` and ``Q6_K`` are the mixes of llama.cpp, in the format ``gguf``.
        quality: how much is done with ``gptq``, which it stands for with ``propagate`` and options:
            ``fast`` (float propagation and ``sweeps``), ``balanced`` (quantized propagation and a
            ``correction``, too) or ``best`` (and gradients of the loss: ``fisher_tokens``).
        propagate: ``quantized`` (the default, unless ``quality`` says otherwise) calibrates each
            block on the already quantized model, which runs the text through each block twice;
            ``float`` calibrates it on the float model.
        format: the checkpoint format to save, or several, e.g. ``["compressed-tensors", "gguf"]``:
            scales are then rounded so that each holds them exactly. Grids that one cannot hold are
            refused now. The default is ``compressed-tensors``, or what ``scheme`` says.
        activation_clip: the share of each language's calibration values that the static ranges of
            activations, and of keys and values, may leave outside, in formats that store them; 0
            holds all of them.
        kv_cache: ``fp8`` stores FP8 scales of keys and values, of the calibration text, for readers
            that keep their cache in 8 bits; in the formats of compressed-tensors.
        tokenizer: of a transformers model, saved with it. With a folder or a hub name it replaces
            the model's own.
        dtype: of the weights while they are quantized, and of those that are not: ``auto`` (as they
            are stored), ``float32``, ``bfloat16`` or ``float16``; of a model that is loaded here.
        device: where blocks run and linears are solved, one block at a time: ``cpu``, ``cuda``,
            ``cuda:N``, or ``auto`` (a GPU, where there is one and mlcalib was built for it; blocks
            of a model that are on GPUs already stay there). The quantized model is where the model
            was.
        memory: GB that the run may take on its device; by default nine tenths of what is free.
            Where that is too little, warnings say what is done without; results are the same.
        progress: show a bar.
        ignore: patterns (``re.search``) of linears that stay in floating point, e.g.
            ``r"layers\.0\."``.
        overrides: pattern → ``bits``, ``group_size`` or ``symmetric`` of the linears it matches,
            e.g. ``{"down_proj": {"bits": 8}}``. What ``ignore`` matches stays as it is; otherwise
            the first pattern that matches counts. Several grids in one ``compressed-tensors``
            checkpoint must all be symmetric.
        revision: of a model on the hub: a branch, a tag or a commit; ``NAME@REVISION`` is the same.
        token: of the hub, for a model that not everybody may read; None for the one that ``hf auth
            login`` or ``HF_TOKEN`` set.
        trust_remote_code: run Python code that lies beside the weights, for a model that
            transformers does not have. It can do what you can do: read it before. The model is then
            held in memory, and the code is saved with the checkpoint. It is never run otherwise.
        options: of a quantizer that ``method`` or ``scheme`` names: ``bits`` (of a weight),
            ``group_size`` (input channels that share a scale), ``symmetric``, ``range``, …

    Returns:
        The quantized model, with the loss of each linear in each calibration language.

    Raises:
        TypeError: ``method`` is neither a name, nor options, nor a list of these.
        OSError: the hub has no such model, or gives no access to it.
        ValueError: an unknown method, scheme, format or option, or options beside an object that
            has them; a value that an option cannot have; a format that cannot hold the grids; a
            pattern that takes no linear, or only some of those that vLLM and SGLang fuse (q, k and
            v; gate and up; experts); NaN or Inf in a layer; a damaged checkpoint; text that the
            model cannot read.
        NotImplementedError: an architecture without an adapter, or weights in a format that is not
            read.
        torch.linalg.LinAlgError: a Gram that is not positive definite.
    """
    asked = [format] if isinstance(format, str) else list(format or ())
    method, options, first = choose(method, scheme, asked[0] if asked else None, options)
    further = asked[1:]
    propagate, options = with_quality(quality, method, propagate, options)
    check_method(method, propagate, calibrated=calibration is not None, options=options)
    for name in (first, *further):
        formats.get(name)
    model = located(model, revision, token)
    place = choose_device(device)
    stopwatch = Stopwatch()
    with stopwatch.timed("load"):
        given = tokenizer is not None
        opened, tokenizer = open_with_tokenizer(
            model, dtype, tokenizer, trust_remote_code=trust_remote_code
        )
    if calibration is not None:
        check_text(opened.model, calibration, tokenizer)
    recipe = make_recipe(
        opened.model,
        opened.adapter,
        tokenizer,
        name=opened.name,
        dtype=opened.dtype,
        method=method,
        propagate=propagate if calibration is not None else None,
        format=first,
        further=further,
        activation_clip=activation_clip,
        kv_cache=kv_cache,
        ignore=ignore,
        overrides=overrides,
        options=options,
    )
    with stopwatch.timed("load"):
        source = opened.loaded()
        for block_name, block in source.adapter.named_blocks(source.model):
            check_block(source.adapter, block_name, block)  # before the first forward
    mixture = {} if calibration is None else mixture_of(calibration)
    sink = MemorySink(source.model, source.adapter, recipe.checkpoint_format)
    job = QuantizationJob(recipe.variant(mixture), sink)
    run_pass(
        source,
        [job],
        calibration,
        propagate=propagate,
        stopwatch=stopwatch,
        description="quantizing" if progress else None,
        device=device,
        memory=memory,
    )
    layers, scales, expert_tokens = merged(source, sink, "layers", "scales", "expert_tokens")
    return QuantizedModel(
        source.model,
        tokenizer,
        source.adapter,
        sink.linears,
        {name: layer["loss_per_token"] for name, layer in layers.items()},
        recipe.description,
        calibration,
        stopwatch.seconds | job.stopwatch.seconds,
        expert_tokens,
        {
            name: {language: tuple(pair) for language, pair in layer["input_range"].items()}
            for name, layer in layers.items()
        },
        scales,
        source.folder,
        source.extra,
        tokenizer_given=given,
        device=device_name(place),
        shrinkage={
            name: layer["shrinkage"] for name, layer in layers.items() if "shrinkage" in layer
        },
        statistics={
            name: layer["statistics"] for name, layer in layers.items() if "statistics" in layer
        },
        divergence={
            name: layer["divergence"] for name, layer in layers.items() if "divergence" in layer
        },
        clipped={
            name: layer["input_clipped"]
            for name, layer in layers.items()
            if "input_clipped" in layer
        },
        kv_cache=cache_record(source, sink),
    )
