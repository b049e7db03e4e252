"""AWQ (arXiv 2306.00978): scale salient channels up before rounding, then clip ranges."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlcalib import _core
from mlcalib._core import AwqOptions, LinearGroup
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import (
    ChannelScales,
    Labels,
    OutputLoss,
    QuantizerOptions,
    ScaledInput,
    felt_grams,
)


class AWQ(QuantizerOptions):
    """AWQ: scales salient channels up before rounding, so that it hurts them less.

    The options of the quantizer ``awq``. Source: arXiv 2306.00978.

    Attributes:
        bits: the bits of a code, from 2 to 8; of other numbers than integers, 4 or 8.
        group_size: how many input channels share a scale; -1 is the whole row.
        symmetric: whether the zero point is fixed at the middle of the range.
        numbers: what scales multiply: ``integer``, ``nf4``, or floats of 4 (``e2m1``) or 8 bits
            (``e4m3``); see ``QuantizerOptions``, also for ``super_block``,
            ``scale_bits`` and ``per_tensor``.
        mix: grids of GGUF, as llama.cpp chooses them for a name such as ``Q4_K_M``; empty for one
            grid for all linears.
        range: how ranges are chosen while scales are searched; without ``clip`` also at the end.
        points: how many scales are tried for each scale group: the powers 0, 1/points, … of the
            mean |x|.
        objective: which error the scale makes least. ``linear`` takes that of the linears' outputs,
            from the Gram. ``block`` takes that of the attention's or MLP's output, by running it,
            as the authors of AWQ do; this is possible where the input comes from a norm.
        clip: whether the final ranges are chosen by the error of the outputs (with the group's
            block of the Gram).
        probe_tokens: the calibration tokens that ``block`` runs on, or one sequence of each
            language if that is more.
        fisher_tokens: 0, or on how many tokens of the calibration text the model is run backward
            to find out how much its loss feels each token. Scales and ranges then count tokens
            half alike, and half by the gradients that they meet (arXiv 2505.07004).
        fisher_labels: whose loss is taken then: of labels drawn from the ``model``'s predictions,
            which makes the true Fisher information, or of the ``text``'s next tokens. Divergences
            are predicted only from the former.
    """

    method = "awq"

    range: Literal["minmax", "mse", "gram"] = "minmax"
    points: int = Field(default=20, ge=1)
    objective: Literal["linear", "block"] = "linear"
    clip: bool = True
    probe_tokens: int = Field(default=4096, ge=1)
    fisher_tokens: int = Field(default=0, ge=0)
    fisher_labels: Labels = "model"

    @model_validator(mode="after")
    def _of_rows(self) -> "AWQ":
        if self.per_tensor:
            raise ValueError(
                "per_tensor is True, but the search of awq fits each row by itself; scale channels "
                "by smoothquant instead."
            )
        return self


@quantizers.register
class AwqQuantizer(Quantizer):
    """Folds scales into the model so that rounding hurts large activations less, then rounds."""

    needs = ("gram", "moments")
    scales = True
    Options = AWQ

    def __init__(self, options: AWQ, scale_dtype: torch.dtype) -> None:
        """See ``Quantizer``."""
        super().__init__(options, scale_dtype)
        self._options = options
        self._search = AwqOptions(self.spec, points=options.points)
        if options.clip:
            self.spec = options.grid(scale_dtype, "gram_block")

    @property
    def fisher_tokens(self) -> int:
        """See ``Quantizer.fisher_tokens``."""
        return self._options.fisher_tokens

    @property
    def fisher_labels(self) -> Labels:
        """See ``Quantizer.fisher_labels``."""
        return self._options.fisher_labels

    @property
    def probe_tokens(self) -> int:
        """See ``Quantizer``."""
        return self._options.probe_tokens if self._options.objective == "block" else 0

    def prepare(
        self, inputs: Sequence[ScaledInput], source_of: Tensor | None, loss_of: OutputLoss | None
    ) -> ChannelScales:
        """See ``Quantizer.prepare``."""
        tokens = sum(each.statistics.tokens for each in inputs)
        absolute = [each.statistics.state("moments")["absolute"] for each in inputs]
        mean = torch.stack(absolute).sum(0) / tokens
        if loss_of is not None:
            return self._by_block(inputs, mean, source_of, loss_of)
        groups = [
            LinearGroup(list(each.weights), gram)
            for each, gram in zip(inputs, self._grams(inputs), strict=True)
        ]
        found = _core.awq_scale(groups, mean, self._search, source_of)
        summary = {"exponent": found.exponent, "loss": found.loss, "unscaled": found.unscaled}
        return ChannelScales(found.scale, summary)

    def _grams(self, inputs: Sequence[ScaledInput]) -> list[Tensor]:
        grams = [each.statistics.gram() for each in inputs]
        if not self.fisher_tokens:
            return grams
        return felt_grams(grams, [each.saliency for each in inputs])

    def _by_block(
        self,
        inputs: Sequence[ScaledInput],
        mean: Tensor,
        source_of: Tensor | None,
        loss_of: OutputLoss,
    ) -> ChannelScales:
        candidates = _core.awq_candidates(mean, self._options.points, source_of)
        # A Gram where the range asks for one: given, rtn also works out a loss, not needed here.
        weighted = self._search.grid.range == "gram"
        grams = self._grams(inputs) if weighted else [None] * len(inputs)
        losses = []
        for scale in candidates:
            rounded = []
            for each, gram in zip(inputs, grams, strict=True):
                scaled = None if gram is None else gram / (scale[:, None] * scale)
                for weight in each.weights:
                    quantized = _core.rtn(weight.float() * scale, self._search.grid, scaled)
                    rounded.append(quantized.dequantize() / scale)
            losses.append(loss_of(rounded))
        best = min(range(len(losses)), key=losses.__getitem__)
        summary = {"exponent": best / len(losses), "loss": losses[best], "unscaled": losses[0]}
        return ChannelScales(candidates[best], summary)
