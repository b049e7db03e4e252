"""What every quantizer is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from mlcalib import _core
from mlcalib._core import GridSpec, QuantizedLinear
from mlcalib.common.config import Config
from mlcalib.common.registry import unknown
from mlcalib.statistics import StatisticSet


class QuantizerOptions(Config):
    """Options of every quantizer; see ``_core.GridSpec``.

    Attributes:
        bits: 2 … 8.
        group_size: input channels that share a scale; -1 is the whole row.
        symmetric: zero point fixed at mid-range.
        range: how each group's range is chosen.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    range: Literal["minmax", "mse", "gram"] = "minmax"

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in given:
            if name not in cls.model_fields:
                raise ValueError(unknown("option", name, cls.model_fields))
        return given


@dataclass(frozen=True)
class ScaledInput:
    """An input whose channels may be scaled.

    Attributes:
        weights: of the linears that read it, [out, in] each.
        statistics: of the input, with at least one token.
    """

    weights: Sequence[Tensor]
    statistics: StatisticSet


@dataclass(frozen=True)
class ChannelScales:
    """Scales of input channels: weights are multiplied by them, inputs divided.

    Attributes:
        values: float32 [in], positive.
        summary: how they were found, for the records.
    """

    values: Tensor
    summary: Mapping[str, float]


OutputLoss = Callable[[Sequence[Tensor]], float]
"""Weights of a scale group's linears, in order → mean squared error of what they are part of."""


class Quantizer:
    """Turns weights into codes, given statistics of their input. Knows no model.

    Attributes:
        needs: kinds of statistic it cannot do without.
        scales: whether it has ``prepare``.
        Options: its options.
        spec: the grids it fits.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    scales: ClassVar[bool] = False
    Options: ClassVar[type[QuantizerOptions]] = QuantizerOptions

    def __init__(self, options: QuantizerOptions, scale_dtype: torch.dtype) -> None:
        """Take options of this quantizer and the dtype that the checkpoint holds scales in.

        Raises:
            ValueError: bits or group size outside their domain.
        """
        self.options = options
        self.spec = GridSpec(
            options.bits, options.group_size, options.symmetric, options.range, scale_dtype
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of statistic that it is to be given: ``needs``, and what its options ask for."""
        return self.needs

    @property
    def order(self) -> Literal["activation", "natural"]:
        """The order in which input channels are visited, which formats record."""
        return "natural"

    @property
    def probe_tokens(self) -> int:
        """Tokens that ``prepare`` wants parts of the block run on; 0 if it does not ask."""
        return 0

    def prepare(
        self, inputs: Sequence[ScaledInput], source_of: Tensor | None, loss_of: OutputLoss | None
    ) -> ChannelScales:
        """Return scales for the channels of inputs that one source makes; if ``scales`` is set.

        Args:
            inputs: of the same channels: one, or one for each expert.
            source_of: int64 [in], for each channel the source's channel; those that share one get
                one scale. None where it is one to one.
            loss_of: runs the attention or MLP; None behind a linear, or if ``probe_tokens`` is 0.
        """
        raise NotImplementedError(f"{type(self).__name__} chooses no scales.")

    def solve(
        self, weights: Sequence[Tensor], statistics: StatisticSet | None
    ) -> list[QuantizedLinear]:
        """Quantize linears that read the same input: to nearest, unless a quantizer does better.

        Where it scales, the scales have been folded into the weights and the statistics.

        Args:
            weights: [out, in] each, float32, bfloat16 or float16, with the same ``in``.
            statistics: of their input; None only where ``needs`` is empty.

        Raises:
            ValueError: NaN or Inf; shapes that do not fit; no statistics where it needs them.
        """
        if statistics is None and self.needs:
            raise ValueError(
                f"{type(self).__name__} needs calibration; give a calibration set, or use rtn."
            )
        gram = None if statistics is None else statistics.gram()
        return [_core.rtn(weight, self.spec, gram) for weight in weights]

    def round(self, weights: Sequence[Tensor]) -> list[QuantizedLinear]:
        """Round linears whose input no token ever reached: there is nothing to solve from.

        The grids weigh all channels alike. Args and errors as ``solve``.
        """
        results = []
        for weight in weights:
            alike = torch.eye(weight.shape[1], device=weight.device)
            grid = _core.fit_grid(weight, self.spec, alike)  # read where range is "gram"
            results.append(QuantizedLinear(_core.quantize(weight, grid), grid))
        return results
