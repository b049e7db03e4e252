"""What a notebook calls: make a calibration set, quantize a model."""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mlcalib.calibration_sets import CalibrationSet, build, from_ids
from mlcalib.corpora import open_corpus
from mlcalib.formats import formats
from mlcalib.languages import LanguageSet, language_set
from mlcalib.models import Adapter, find_adapter
from mlcalib.models.loading import architecture, check_source, load_model, load_tokenizer
from mlcalib.pipeline import Propagate, quantize_blocks
from mlcalib.quantized_model import QuantizedModel
from mlcalib.quantizers import quantizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def calibration(
    tokenizer: "str | Path | PreTrainedTokenizerBase | None",
    languages: str | LanguageSet | None = None,
    corpus: str | Mapping[str, Sequence[str]] | Mapping[str, Sequence[Sequence[int]]] = "sample",
    *,
    tokens: int | None = None,
    seq_len: int = 512,
    seed: int = 0,
    separator: str | None = None,
    allow_short: bool = False,
) -> CalibrationSet:
    r"""Make a calibration set.

    Args:
        tokenizer: a fast tokenizer, or the model it belongs to (folder, hub name, GGUF file). May
            be None where ``corpus`` holds token ids.
        languages: a set (``multi10``), languages (``en,sw``), shares (``en:0.7,sw:0.3``) or a
            ``LanguageSet``. Default: ``multi10`` with a corpus by name, and otherwise the languages
            of ``corpus`` in equal shares.
        corpus: ``sample``, ``files:PATH``; or language → documents (strings), or language →
            sequences of token ids, all of which are used.
        tokens: tokens of the whole set; split by the shares. Needed unless ids are given.
        seq_len: tokens of a sequence; a forward always has the shape [1, seq_len].
        seed: what documents are shuffled with.
        separator: what stands between documents: None for what the tokenizer adds by itself, or
            ``eos``, ``bos`` or a text such as ``\n\n``.
        allow_short: use what there is where a language has too little text.

    Raises:
        FileNotFoundError: no such folder, or no text in a language.
        ValueError: see ``mlcalib.calibration_sets.build``.
    """
    if isinstance(corpus, Mapping):
        name, given = "given", corpus
        if ids := _token_ids(given):
            return from_ids(ids, seq_len=seq_len)
    else:
        name, given = corpus, {}
    if tokens is None or tokenizer is None:
        missing = "tokens=, the size of the calibration set" if tokens is None else "a tokenizer"
        raise ValueError(f"Text was given without {missing}; pass it.")
    if not isinstance(languages, LanguageSet):
        languages = language_set(languages or (",".join(given) if given else "multi10"))
    if isinstance(corpus, str):
        source = open_corpus(corpus)
        given = {code: source.documents(code, "calib") for code in languages.weights}
    if isinstance(tokenizer, str | Path):
        check_source(str(tokenizer))
        tokenizer = load_tokenizer(str(tokenizer))
    return build(
        tokenizer,
        given,  # type: ignore[arg-type]  # ids were dealt with above
        languages,
        tokens=tokens,
        seq_len=seq_len,
        seed=seed,
        separator=separator,
        allow_short=allow_short,
        corpus=name,
    )


def _token_ids(given: Mapping[str, Any]) -> Mapping[str, Sequence[Sequence[int]]] | None:
    """Return ``given`` if it holds token ids rather than text."""
    kinds = {
        isinstance(document, str)
        for documents in given.values()
        for document in ([documents] if isinstance(documents, str) else documents)
    }
    if kinds == {True, False}:
        raise ValueError("Some languages have text and others token ids; give one or the other.")
    return given if kinds == {False} else None


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

    start = time.perf_counter()
    name, adapter, live, tokenizer = _open(model, tokenizer, dtype)
    loaded = time.perf_counter() - start

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
        {"load": loaded, **solved.seconds},
    )


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
