"""GPTQ (arXiv 2210.17323), with ranges weighted by the Gram, and with corrected targets."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlcalib import _core
from mlcalib._core import GptqOptions, GridSpec, QuantizedLinear
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers._composition import Scales, for_solver
from mlcalib.quantizers._correction import corrected
from mlcalib.quantizers.base import (
    ChannelScales,
    Labels,
    OutputLoss,
    QuantizerOptions,
    ScaledInput,
    Sensitivity,
    felt_grams,
)
from mlcalib.statistics import StatisticSet


class GPTQ(QuantizerOptions):
    """GPTQ: rounds column by column, and later columns make up for the error of earlier ones.

    The options of the quantizer ``gptq``. Source: arXiv 2210.17323.

    Attributes:
        bits: the bits of a code, from 2 to 8; of other numbers than integers, 4 or 8.
        group_size: how many input channels share a scale; -1 is the whole row.
        symmetric: whether the zero point is fixed at the middle of the range.
        numbers: what scales multiply: ``integer``, ``nf4``, or floats of 4 (``e2m1``) or 8 bits
            (``e4m3``); see ``QuantizerOptions``, also for ``super_block``,
            ``scale_bits`` and ``per_tensor``.
        mix: grids of GGUF, as llama.cpp chooses them for a name such as ``Q4_K_M``; empty for one
            grid for all linears.
        range: how the range of each group is chosen; ``gram`` weights errors by the diagonal of
            the Gram.
        damp: what is added to the diagonal of the Gram, as a fraction of its mean.
        order: the order in which input channels are visited: ``activation`` (the largest first,
            with static groups) or ``natural``.
        refit: how often scales are fitted again to the codes and the weights are solved again.
        sweeps: how often all codes are gone through after the solve, each to become the best that
            it can alone; before the first time scales become the best for their codes (coordinate
            descent, arXiv 2309.01885 and 2406.17542).
        correction: from 0 to 1: how far weights move, before they are rounded, towards weights
            that give the float model's outputs for the quantized model's inputs
            (``_core.corrected``; the target of GPTAQ, arXiv 2504.02692). ``auto`` chooses that for
            the linears of each input, by how well what is corrected for one half of the text holds
            for the other. Where nothing but the sum with the hidden states comes behind a block's
            last linear, that one makes up for the error of all that the block returns. Inputs of a
            block are then solved one after the other, each behind those before it (GPTQ's true
            sequential). It needs ``propagate="quantized"``.
        fisher_tokens: 0, or on how many tokens of the calibration text the model is run backward
            to find out how much its loss feels each token and each output: inputs then weigh by the
            gradients that they meet (arXiv 2505.07004), and later outputs make up for errors of
            earlier ones (arXiv 2505.22988).
        fisher_labels: whose loss is taken then: of labels drawn from the ``model``'s predictions,
            which makes the true Fisher information, or of the ``text``'s next tokens. Divergences
            are predicted only from the former.
        output_damp: what is added to the diagonal of the Gram of the outputs' gradients, as a
            fraction of its mean.
        objective: ``mean`` weighs the calibration text as it comes. ``worst`` gives languages more
            weight the more they have lost in the blocks before, by what the loss feels
            (``fisher_tokens``), so that none is left far behind.
        scales: a quantizer that scales the channels of inputs before: ``"awq"``,
            ``mlcalib.SmoothQuant(alpha=0.4)``, or None. It searches for the grids that are solved:
            they and ``fisher_tokens`` are given here alone. ``method=[scales, solver]`` is the
            same.
        static_grid: whether the grids are fitted before solving. False, which needs the natural
            order, fits the grid of a group when the group is reached.
    """

    method = "gptq"

    range: Literal["minmax", "mse", "gram"] = "gram"
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    static_grid: bool = True
    refit: int = 0
    sweeps: int = 0
    correction: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.0
    fisher_tokens: int = Field(default=0, ge=0)
    fisher_labels: Labels = "model"
    output_damp: float = Field(default=1.0, gt=0)
    objective: Literal["mean", "worst"] = "mean"
    scales: Scales = None

    def solver(self, spec: GridSpec) -> GptqOptions:
        """Return what the core takes.

        Raises:
            ValueError: values that are not possible, or not together.
        """
        return GptqOptions(
            spec,
            damp=self.damp,
            order=self.order,
            static_grid=self.static_grid,
            refit=self.refit,
            sweeps=self.sweeps,
            output_damp=self.output_damp,
        )

    @model_validator(mode="after")
    def _solvable(self) -> "GPTQ":
        self.solver(GridSpec())
        if self.scales is not None:
            for_solver(self.scales, self)
        if self.objective == "worst" and not self.fisher_tokens:
            raise ValueError(
                "objective 'worst' weighs languages by what the loss feels of each: it needs "
                "fisher_tokens above 0, for instance 10240."
            )
        if self.objective == "worst" and self.fisher_labels != "model":
            raise ValueError(
                "objective 'worst' weighs languages by predicted divergences, which are those of "
                "fisher_labels 'model'; leave fisher_labels out."
            )
        return self


@quantizers.register
class GptqQuantizer(Quantizer):
    """Rounds column by column; later columns make up for the error of earlier ones."""

    needs = ("gram",)
    Options = GPTQ

    def __init__(self, options: GPTQ, scale_dtype: torch.dtype) -> None:
        """See ``Quantizer``."""
        super().__init__(options, scale_dtype)
        self._gptq = options.solver(self.spec)
        self._fisher_tokens = options.fisher_tokens
        self._fisher_labels = options.fisher_labels
        self._worst_off = options.objective == "worst"
        self._correction = options.correction
        self._scaler: Quantizer | None = None
        if options.scales is not None:
            kind = quantizers.get(options.scales.method)
            self._scaler = kind(for_solver(options.scales, options), scale_dtype)
            self.scales = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """See ``Quantizer.kinds``."""
        deviation = ("deviation",) if self._correction else ()
        further = () if self._scaler is None else self._scaler.kinds
        return tuple(dict.fromkeys((*self.needs, *deviation, *further)))

    @property
    def probe_tokens(self) -> int:
        """See ``Quantizer.probe_tokens``."""
        return 0 if self._scaler is None else self._scaler.probe_tokens

    def prepare(
        self, inputs: Sequence[ScaledInput], source_of: Tensor | None, loss_of: OutputLoss | None
    ) -> ChannelScales:
        """See ``Quantizer.prepare``."""
        if self._scaler is None:
            return super().prepare(inputs, source_of, loss_of)
        return self._scaler.prepare(inputs, source_of, loss_of)

    @property
    def fisher_tokens(self) -> int:
        """See ``Quantizer.fisher_tokens``."""
        return self._fisher_tokens

    @property
    def halves(self) -> bool:
        """See ``Quantizer.halves``."""
        return self._correction == "auto"

    @property
    def fisher_labels(self) -> Labels:
        """See ``Quantizer.fisher_labels``."""
        return self._fisher_labels

    @property
    def worst_off(self) -> bool:
        """See ``Quantizer.worst_off``."""
        return self._worst_off

    @property
    def order(self) -> Literal["activation", "natural"]:
        """See ``Quantizer.order``."""
        return self._gptq.order

    def solve(
        self,
        weights: Sequence[Tensor],
        statistics: StatisticSet | None,
        sensitivity: Sensitivity | None = None,
    ) -> list[QuantizedLinear]:
        """See ``Quantizer.solve``. All weights share one factorisation of the Gram.

        Raises:
            ValueError: there are no statistics.
            torch.linalg.LinAlgError: the Gram is not positive definite, even with the largest damp.
        """
        if statistics is None:
            raise ValueError("gptq needs calibration; give a calibration set, or use method='rtn'.")
        gram, targets = statistics.gram(), list(weights)
        if not self._correction:
            return self._rounded(targets, gram, sensitivity)
        targets, strength = corrected(targets, statistics, gram, self._correction)
        found = self._rounded(targets, gram, sensitivity)
        return [linear.replaced(correction=strength) for linear in found]

    def _rounded(
        self, targets: Sequence[Tensor], gram: Tensor, sensitivity: Sensitivity | None
    ) -> list[QuantizedLinear]:
        if sensitivity is None:
            return _core.gptq(targets, gram, self._gptq)
        outputs = [
            torch.eye(len(target), device=gram.device)  # rows by themselves
            if each is None
            else each.view("output_gram")["gram"]
            for target, each in zip(targets, sensitivity.outputs, strict=True)
        ]
        (felt,) = felt_grams([gram], [sensitivity.saliency])
        return _core.gptq(targets, felt, outputs, self._gptq)
