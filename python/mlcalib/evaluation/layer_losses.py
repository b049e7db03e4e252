"""What each layer of a quantized model loses in each language, on any text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mlcalib.calibration_sets import CalibrationSet, build
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.corpora import open_corpus
from mlcalib.languages import LanguageSet, language_set
from mlcalib.models import find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import load_model, shared_copy
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.quantized_model import QuantizedModel
from mlcalib.quantization.solve import losses_per_token, references

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LayerLosses = dict[str, dict[str, float]]
"""Linear → language → loss per token."""


@torch.no_grad()
def layer_losses(
    model: "str | Path | PreTrainedModel",
    quantized: Sequence[QuantizedModel],
    languages: str | LanguageSet = "multi10",
    corpus: str = "sample",
    *,
    tokens: int = 1024,
    seq_len: int = 512,
    separator: str | None = None,
    dtype: str = "auto",
    progress: bool = True,
) -> list[LayerLosses]:
    """Measure the loss of every quantized linear per language on held-out text.

    ``QuantizedModel.losses`` holds only the languages of its own calibration text. Here all models
    are measured on one text, behind float blocks, in one pass of the float model: tr(D G Dᵀ) per
    token, with D the change of the weight and G the Gram of that language.

    Args:
        model: the float model: a folder, a hub name, a GGUF file, or a transformers model.
        quantized: what ``mlcalib.quantize`` made of it.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its eval split is used.
        tokens: tokens per language: the first so many.
        seq_len: tokens of a sequence.
        separator: what stands between documents, as for ``mlcalib.calibration``.
        dtype: of a model that is loaded here.
        progress: show a bar.

    Returns:
        For each quantized model: linear → language → loss per token. A language of which an expert
        saw no token is left out there.

    Raises:
        FileNotFoundError: no such model or text.
        NotImplementedError: a method that folded scales into the model (``awq``): its weights act
            on other inputs than the float model's.
        ValueError: no quantized model, one of another float model, or too little text.
    """
    live = load_model(str(model), dtype) if isinstance(model, str | Path) else shared_copy(model)
    adapter = find_adapter(type(live).__name__)
    unfuse(live, adapter)
    weights = {name: linear.weight for name, linear in adapter.named_linears(live)}
    _check(quantized, weights)
    text = _text(quantized[0].tokenizer, languages, corpus, tokens, seq_len, separator)
    flow = Flow(live, adapter, text, Stopwatch())
    found: list[LayerLosses] = [{} for _ in quantized]
    blocks = adapter.named_blocks(live)
    for name, block in tqdm(blocks, desc="layer losses", unit="block", disable=not progress):
        statistics = flow.collect(name, block, ("gram",), skipped=(), advance=True)
        flow.turn()
        measured = references(statistics)
        for reader, members in adapter.linears_of(block).items():
            for layer in (f"{name}.{member}" for member in members):
                for each, losses in zip(quantized, found, strict=True):
                    if (result := each.linears.get(layer)) is not None:
                        change = weights[layer].float() - result.dequantize()
                        losses[layer] = losses_per_token(change, measured[reader])
    return found


def _check(quantized: Sequence[QuantizedModel], weights: Mapping[str, Tensor]) -> None:
    if not quantized:
        raise ValueError("No quantized model was given; give one or more, in a list.")
    for each in quantized:
        method = each.recipe["method"]
        if each.scales:
            raise NotImplementedError(
                f"{method} folded scales into the model, so that its linears read other inputs "
                "than the float model's; compare its losses on its own calibration text "
                "(QuantizedModel.losses), or perplexity."
            )
        shapes = {name: tuple(linear.codes.shape) for name, linear in each.linears.items()}
        for name, shape in shapes.items():
            if name not in weights or tuple(weights[name].shape) != shape:
                own = tuple(weights[name].shape) if name in weights else "missing"
                raise ValueError(
                    f"{name} is {shape} in what {method} made of {each.recipe['model']}, but "
                    f"{own} in the float model; give the model that was quantized."
                )


def _text(
    tokenizer: "PreTrainedTokenizerBase",
    languages: str | LanguageSet,
    corpus: str,
    tokens: int,
    seq_len: int,
    separator: str | None,
) -> CalibrationSet:
    """Return the first tokens of each language's eval split."""
    named = languages if isinstance(languages, LanguageSet) else language_set(languages)
    alike = LanguageSet(named.name, dict.fromkeys(named.weights, 1))
    source = open_corpus(corpus)
    texts = {code: source.documents(code, "eval") for code in alike.weights}
    total = tokens * len(texts)
    return build(
        tokenizer, texts, alike, tokens=total, seq_len=seq_len, separator=separator, corpus=corpus
    )
