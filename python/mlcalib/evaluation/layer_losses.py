"""Measures what each layer of a quantized model loses in each language, on any text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mlcalib.common.stopwatch import Stopwatch
from mlcalib.evaluation.text import eval_sequences
from mlcalib.languages import LanguageSet
from mlcalib.models.context import DEFAULT_SEQ_LEN
from mlcalib.models.device import choose_device
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.job import BlockView, Observation, Text
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.quantized_model import QuantizedModel
from mlcalib.quantization.solve import References, losses_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LayerLosses = dict[str, dict[str, float]]
"""Linear → language → loss per token."""


def layer_losses(  # noqa: PLR0913 - what a measurement is made of
    model: "str | Path | PreTrainedModel",
    quantized: Sequence[QuantizedModel],
    languages: str | LanguageSet = "multi10",
    corpus: str = "sample",
    *,
    tokens: int = 1024,
    seq_len: int = DEFAULT_SEQ_LEN,
    separator: str | None = None,
    window_bos: bool = True,
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    progress: bool = True,
) -> list[LayerLosses]:
    """Measure the loss of every quantized linear in each language, on other text.

    ``QuantizedModel.losses`` has only the languages of its own calibration text. This function
    measures all models on one text, with the activations of the float model, in one pass of it
    (which reads safetensors files one block at a time). The loss is tr(D G Dᵀ) per token: D is the
    change of the weight, G the Gram of the language.

    Args:
        model: the float model: a folder, a hub name, a GGUF file, or a transformers model.
        quantized: the models that ``mlcalib.quantize`` made of it.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its evaluation text is used.
        tokens: the number of tokens of each language, from the beginning of its text.
        seq_len: the number of tokens of a sequence.
        separator: what is put between documents, as for ``mlcalib.calibration``.
        window_bos: whether every sequence begins as the tokenizer begins a text, likewise.
        dtype: the dtype of a model that is loaded here.
        device: where blocks run: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a GPU if there is
            one and mlcalib was built for it.
        memory: GB that the run may take there; see ``mlcalib.quantize``.
        progress: whether to show a progress bar.

    Returns:
        For each quantized model: linear → language → loss per token. If an expert saw no token of a
        language, this language is missing there.

    Raises:
        FileNotFoundError: a model or text does not exist.
        NotImplementedError: the method folded scales into the model (``awq``), so its linears read
            other inputs than those of the float model.
        ValueError: there is no quantized model, one belongs to another float model, or there is too
            little text.
    """
    choose_device(device)
    source = open_source(model, dtype).ready()
    _check(
        quantized, {name: each.weight for name, each in source.adapter.named_linears(source.model)}
    )
    tokenizer = quantized[0].tokenizer
    text = eval_sequences(
        tokenizer, languages, corpus, separator, tokens, seq_len=seq_len, window_bos=window_bos
    )
    losses = _Losses(quantized)
    run_pass(
        source,
        [losses],
        text,
        propagate="float",
        stopwatch=Stopwatch(),
        description="layer losses" if progress else None,
        device=device,
        memory=memory,
    )
    return losses.found


class _Losses(Observation):
    """Measures what each quantized model changed in each block."""

    kinds = ("gram",)
    divisible = True

    def __init__(self, quantized: Sequence[QuantizedModel]) -> None:
        """Take the quantized models."""
        super().__init__()
        self._quantized = quantized
        self.found: list[LayerLosses] = [{} for _ in quantized]

    def see(self, block: BlockView) -> None:
        """See ``Observation``."""
        self.measure(block, block.measured)

    def measure(self, block: BlockView, measured: References[Text]) -> None:
        """See ``Observation``."""
        for reader, members in block.adapter.linears_of(block.module).items():
            grams = {language: each for (_, language), each in measured.get(reader, {}).items()}
            for member in members:
                layer = f"{block.name}.{member}"
                weight = block.adapter.linear(block.module, member).weight
                for each, losses in zip(self._quantized, self.found, strict=True):
                    if (result := each.linears.get(layer)) is not None:
                        change = weight.float() - result.to(weight.device).dequantize()
                        losses.setdefault(layer, {}).update(losses_per_token(change, grams))


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
