"""GPTQ (arXiv 2210.17323) in its feedback form, with Gram-weighted ranges and corrected targets."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mlcalib import _core
from mlcalib._core import CorrectionOptions, GptqOptions, QuantizedLinear
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import QuantizerOptions
from mlcalib.statistics import StatisticSet


class GptqQuantizerOptions(QuantizerOptions):
    """Options of ``gptq``; see ``_core.GptqOptions``.

    Attributes:
        range: how each group's range is chosen: ``gram`` weights errors by the Gram's diagonal.
        damp: added to the Gram's diagonal, as a fraction of its mean.
        order: ``activation`` (with static groups) or ``natural``.
        refit: rounds of refitting scales to the codes and solving again.
        correction: from 0 to 1, how far weights move, before they are rounded, towards what gives
            the float model's outputs for the quantized model's inputs (``_core.corrected``, the
            target of GPTAQ, arXiv 2504.02692). Needs ``propagate="quantized"``.
        static_grid: False (natural order only) fits a group's grid when it is reached.
    """

    range: Literal["minmax", "mse", "gram"] = "gram"
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    static_grid: bool = True
    refit: int = 0
    correction: float = Field(default=0.0, ge=0, le=1)


@quantizers.register
class Gptq(Quantizer):
    """Rounds column by column and lets later columns make up for the error of earlier ones."""

    needs = ("gram",)
    Options = GptqQuantizerOptions

    def __init__(self, options: GptqQuantizerOptions, scale_dtype: torch.dtype) -> None:
        """See ``Quantizer``."""
        super().__init__(options, scale_dtype)
        self._gptq = GptqOptions(
            self.spec,
            damp=options.damp,
            order=options.order,
            static_grid=options.static_grid,
            refit=options.refit,
        )
        self._correction = CorrectionOptions(options.correction) if options.correction else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """See ``Quantizer.kinds``."""
        return self.needs if self._correction is None else (*self.needs, "deviation")

    @property
    def order(self) -> Literal["activation", "natural"]:
        """The order in which input channels are visited."""
        return self._gptq.order

    def solve(
        self, weights: Sequence[Tensor], statistics: StatisticSet | None
    ) -> list[QuantizedLinear]:
        """See ``Quantizer.solve``; one factorisation serves all the weights.

        Raises:
            ValueError: no statistics.
            torch.linalg.LinAlgError: the Gram is not positive definite, however damped.
        """
        if statistics is None:
            raise ValueError("gptq needs calibration; give a calibration set, or use method='rtn'.")
        targets = list(weights)
        if self._correction is not None:
            deviation = statistics.view("deviation")["deviation"]
            targets = _core.corrected(targets, statistics.gram(), deviation, self._correction)
        return _core.gptq(targets, statistics.gram(), self._gptq)
