"""SmoothQuant (arXiv 2211.10438): moves outliers of activations into weights.

It is for W8A8: weights of 8 bits, and activations that are rounded to 8 bits while the model runs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlcalib import _core
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import ChannelScales, OutputLoss, QuantizerOptions, ScaledInput
from mlcalib.statistics import StatisticSet


class SmoothQuant(QuantizerOptions):
    """SmoothQuant: moves outliers of activations into weights; the defaults are for W8A8.

    The options of the quantizer ``smoothquant``. Activations are rounded in a checkpoint with
    ``format="compressed-tensors-int8"``. Source: arXiv 2211.10438.

    Attributes:
        bits: the bits of a code, from 2 to 8; of other numbers than integers, 4 or 8.
        group_size: how many input channels share a scale; -1 is the whole row.
        symmetric: whether the zero point is fixed at the middle of the range.
        numbers: what scales multiply: ``integer``, ``nf4``, or floats of 4 (``e2m1``) or 8 bits
            (``e4m3``); see ``QuantizerOptions``, also for ``super_block``,
            ``scale_bits`` and ``per_tensor``.
        mix: grids of GGUF, as llama.cpp chooses them for a name such as ``Q4_K_M``; empty for one
            grid for all linears.
        range: how the range of each group is chosen: its extremes (``minmax``), or the least
            squared error of the weights (``mse``).
        alpha: the exponent that shares the outliers between activations and weights. 0 leaves
            activations as they are, and 1 gives all their channels the same size. ``search`` takes
            the best of 0, 0.05, … 1 for each scale group.
        activation_bits: the bits of activations for which the search chooses.
    """

    method = "smoothquant"

    bits: int = 8
    group_size: int = -1
    symmetric: bool = True
    range: Literal["minmax", "mse"] = "minmax"
    alpha: float | Literal["search"] = Field(default=0.5)
    activation_bits: int = Field(default=8, ge=2, le=16)

    @model_validator(mode="after")
    def _exponent(self) -> "SmoothQuant":
        if self.alpha != "search" and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, expected 0 to 1, or 'search'.")
        return self


@quantizers.register
class SmoothQuantQuantizer(Quantizer):
    """Folds scales max|x|^alpha / max|w|^(1-alpha) into the model, then rounds to nearest."""

    needs = ("gram", "range")
    scales = True
    Options = SmoothQuant

    def __init__(self, options: SmoothQuant, scale_dtype: torch.dtype) -> None:
        """See ``Quantizer``."""
        super().__init__(options, scale_dtype)
        self._options = options

    def prepare(
        self, inputs: Sequence[ScaledInput], source_of: Tensor | None, loss_of: OutputLoss | None
    ) -> ChannelScales:
        """See ``Quantizer.prepare``.

        The search adds two squared errors of the linears' outputs over the calibration tokens: the
        error from rounding weights, by the Gram, and the expected error from rounding activations.
        Rounding with a step has the variance step²/12, and the step of a token depends on its
        largest activation. This is not known. Its mean square lies between the largest mean square
        of a channel (the Gram's diagonal) and the square of the largest activation of the text, and
        the geometric mean of the two is used.
        """
        largest = torch.stack([_largest(each.statistics) for each in inputs]).amax(0)
        widest = torch.stack(
            [weight.float().abs().amax(0) for each in inputs for weight in each.weights]
        ).amax(0)
        if source_of is not None:
            largest, widest = _shared(largest, source_of), _shared(widest, source_of)
        alphas = [self._options.alpha] if self._options.alpha != "search" else _ALPHAS
        candidates = [_scale(largest, widest, float(alpha)) for alpha in alphas]
        losses = [self._loss(inputs, scale) for scale in candidates]
        best = min(range(len(losses)), key=losses.__getitem__)
        unscaled = self._loss(inputs, torch.ones_like(largest))
        summary = {"alpha": float(alphas[best]), "loss": losses[best], "unscaled": unscaled}
        return ChannelScales(candidates[best], summary)

    def _loss(self, inputs: Sequence[ScaledInput], scale: Tensor) -> float:
        steps = 2 ** (self._options.activation_bits - 1) - 1
        total = 0.0
        for each in inputs:
            gram = each.statistics.gram() / (scale[:, None] * scale)
            tokens = each.statistics.tokens
            low = float(gram.diagonal().max()) / tokens
            high = float((_largest(each.statistics) / scale).square().max())
            variance = (low * high) ** 0.5 / steps**2 / 12
            for weight in each.weights:
                scaled = weight.float() * scale
                rounded = _core.rtn(scaled, self.spec, gram)
                energy = float(rounded.dequantize().double().square().sum())
                total += (rounded.loss or 0.0) + tokens * variance * energy
        return total


_ALPHAS = tuple(step / 20 for step in range(21))


def _largest(statistics: StatisticSet) -> Tensor:
    """Return max |x| of each channel, float32."""
    extremes = statistics.state("range")
    return torch.maximum(extremes["high"].abs(), extremes["low"].abs()).float()


def _shared(values: Tensor, source_of: Tensor) -> Tensor:
    """Return the largest value of the channels that share a source's channel, for each of them."""
    zeros = torch.zeros(int(source_of.max()) + 1, device=values.device)
    common = zeros.scatter_reduce(0, source_of, values, "amax")
    return common[source_of]


def _scale(largest: Tensor, widest: Tensor, alpha: float) -> Tensor:
    """Return max|x|^alpha / max|w|^(1-alpha) about 1; where a channel is never used, 1."""
    used = (largest > 0) & (widest > 0)
    scale = largest.clamp_min(1e-5) ** alpha / widest.clamp_min(1e-5) ** (1 - alpha)
    scale = torch.where(used, scale, torch.ones_like(scale))
    return scale / (scale.max() * scale.min()).sqrt()
