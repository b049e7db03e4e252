"""GPTQ (arXiv 2210.17323) in its feedback form, with Gram-weighted ranges."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mlcalib import _core
from mlcalib._core import GptqOptions, QuantizedLinear
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
        static_grid: False (natural order only) fits a group's grid when it is reached.
    """

    range: Literal["minmax", "mse", "gram"] = "gram"
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    static_grid: bool = True
    refit: int = 0


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
        return _core.gptq(list(weights), statistics.gram(), self._gptq)
