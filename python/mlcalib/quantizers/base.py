"""The base class of quantizers and of their options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import ValidationError, model_validator
from torch import Tensor

from mlcalib import _core
from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.checked import problems
from mlcalib.common.config import Config
from mlcalib.common.gguf_types import BLOCK_TYPES, MIXES, BlockType
from mlcalib.common.registry import unknown
from mlcalib.statistics import StatisticSet

if TYPE_CHECKING:
    from mlcalib._core import Range


class QuantizerOptions(Config):
    """The options that every quantizer has; those of one quantizer are a class of their own.

    An object of such a class is what ``method=`` of ``mlcalib.quantize`` takes. Its values are
    checked when it is made, and it cannot be changed afterwards.

    Attributes:
        method: the name of the quantizer, of the class; without it, objects are no ``method=``.
        bits: the bits of a code, from 2 to 8.
        group_size: how many input channels share a scale; -1 is the whole row.
        symmetric: whether the zero point is fixed at the middle of the range.
        range: how the range of each group is chosen: its extremes (``minmax``), the least squared
            error of the weights (``mse``), or the least error weighted by the Gram (``gram``).
        numbers: what scales multiply: ``integer`` (codes less a zero point), ``nf4`` (the 16
            numbers of NormalFloat), or floats of 4 (``e2m1``) or 8 bits (``e4m3``). All but
            integers have bits of their own and no zero point: ``bits`` and ``symmetric`` follow.
        super_block: 0, or how many input channels share a number whose multiples the scales of
            their groups are; see ``GridSpec``.
        scale_bits: the bits of these multiples; 0 without a ``super_block``.
        per_tensor: whether all linears that read one input have one scale together, and no groups.
        mix: empty, or which linears lie on which grids of GGUF, as llama.cpp's own quantizer
            chooses them for a file of this name, e.g. ``Q4_K_M``. ``bits``, ``group_size``,
            ``symmetric``, ``super_block`` and ``scale_bits`` are then those of most linears.
    """

    method: ClassVar[str] = ""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    range: Literal["minmax", "mse", "gram"] = "minmax"
    numbers: Literal["integer", "nf4", "e2m1", "e4m3"] = "integer"
    super_block: int = 0
    scale_bits: int = 0
    per_tensor: bool = False
    mix: str = ""

    if not TYPE_CHECKING:  # type checkers take the arguments from the fields

        def __init__(self, **given: Any) -> None:
            """Check options.

            Raises:
                ValueError: an option does not exist, or has a value that is not possible; in
                    words, without pydantic's own.
            """
            fields = type(self).model_fields
            for name in given:
                if name not in fields:
                    raise ValueError(unknown("option", name, fields))
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise ValueError(problems(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, given: dict[str, Any]) -> dict[str, Any]:
        if mix := given.get("mix"):
            if mix not in MIXES:
                raise ValueError(unknown("mix", str(mix), MIXES))
            grid = BLOCK_TYPES[MIXES[mix]].options()
            for name, value in ({"numbers": "integer"} | grid).items():
                if given.get(name, value) != value:
                    raise ValueError(
                        f"mix is '{mix}', whose grids are its own: most have {name} {value}, but "
                        f"{name} {given[name]} was given; leave one of them out."
                    )
            return {**grid, **given}
        if (numbers := given.get("numbers", "integer")) == "integer":
            return given
        return {"bits": 8 if numbers == "e4m3" else 4, "symmetric": True, **given}

    @model_validator(mode="after")
    def _possible(self) -> "QuantizerOptions":
        self.grid(torch.float32)
        return self

    def grid(self, scale_dtype: torch.dtype, range: "Range | None" = None) -> GridSpec:  # noqa: A002
        """Return the grids that these options ask for.

        Args:
            scale_dtype: the dtype in which the checkpoint stores scales.
            range: another range than the options' own.

        Raises:
            ValueError: values that are not possible, or not together.
        """
        return GridSpec(
            self.bits,
            self.group_size,
            self.symmetric,
            self.range if range is None else range,
            scale_dtype,
            self.numbers,
            super_block=self.super_block,
            scale_bits=self.scale_bits,
            per_tensor=self.per_tensor,
        )

    def of_type(self, block_type: BlockType) -> "QuantizerOptions":
        """Return the same options for the grid of one of GGUF's types."""
        return self.model_copy(update={"mix": "", **block_type.options()})


@dataclass(frozen=True)
class ScaledInput:
    """An input of linears whose channels may be scaled.

    Attributes:
        weights: the weights of the linears that read it, [out, in] each.
        statistics: the statistics of the input, with at least one token.
        saliency: its ``saliency_gram``, where ``fisher_tokens`` asks for it and text that reached
            it had gradients.
    """

    weights: Sequence[Tensor]
    statistics: StatisticSet
    saliency: StatisticSet | None = None


@dataclass(frozen=True)
class ChannelScales:
    """Scales of input channels. Weights are multiplied by them, and inputs are divided.

    Attributes:
        values: the scales, float32 [in], positive.
        summary: how they were found, for the record.
    """

    values: Tensor
    summary: Mapping[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """How much the model's loss feels what linears of one input read and return.

    Both are Grams of tokens weighted by gradients of the loss; see ``quantization.fisher``.

    Attributes:
        saliency: of their input, a ``saliency_gram``.
        outputs: of each linear, an ``output_gram``; None where the model takes no gradient.
    """

    saliency: StatisticSet
    outputs: Sequence[StatisticSet | None]


def felt_grams(grams: Sequence[Tensor], saliency: Sequence[StatisticSet | None]) -> list[Tensor]:
    """Return Grams of inputs that count tokens half alike, and half as the loss feels them.

    Args:
        grams: of inputs that are solved together, float32 [in, in] each.
        saliency: of each its ``saliency_gram``; None where no gradient is known, so that all its
            tokens count alike.

    Returns:
        G / g + G₁ / g₁ of each, where g and g₁ are the means of all the diagonals.
    """
    felt = [None if each is None else each.view("saliency_gram")["gram"] for each in saliency]
    mean, mean_felt = _mean_diagonal(grams), _mean_diagonal([g for g in felt if g is not None])
    return [
        gram / mean + (gram / mean if other is None else other / mean_felt)
        for gram, other in zip(grams, felt, strict=True)
    ]


def _mean_diagonal(grams: Sequence[Tensor]) -> float:
    found = [float(gram.diagonal().mean()) for gram in grams]
    return sum(found) / len(found) if any(found) else 1.0


Labels = Literal["model", "text"]
"""What a model is to predict where the gradients of its loss are taken."""

OutputLoss = Callable[[Sequence[Tensor]], float]
"""Takes the weights of a scale group's linears in order, and returns the mean squared error of the
output of the attention or MLP that they are part of."""


class Quantizer:
    """Turns weights into codes, with statistics of their input. It knows no model.

    Attributes:
        needs: the kinds of statistic that it needs; empty if it needs no calibration.
        scales: whether it has ``prepare``.
        Options: the class of its options.
        spec: the grids that it fits.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    scales: bool = False
    Options: ClassVar[type[QuantizerOptions]] = QuantizerOptions

    def __init__(self, options: QuantizerOptions, scale_dtype: torch.dtype) -> None:
        """Make a quantizer.

        Args:
            options: an object of ``Options``.
            scale_dtype: the dtype in which the checkpoint stores scales.

        Raises:
            ValueError: ``bits`` or ``group_size`` has a value that is not possible.
        """
        self.options = options
        self.spec = options.grid(scale_dtype)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of statistic that it is given: ``needs``, and what its options ask for."""
        return self.needs

    @property
    def order(self) -> Literal["activation", "natural"]:
        """The order in which input channels are visited; formats record it."""
        return "natural"

    @property
    def fisher_tokens(self) -> int:
        """Tokens of calibration text whose gradients make the ``Sensitivity``; 0 for none."""
        return 0

    @property
    def fisher_labels(self) -> "Labels":
        """Whose loss is taken: of labels that the ``model`` draws, or of the ``text`` itself."""
        return "model"

    @property
    def worst_off(self) -> bool:
        """Whether languages that lose more weigh more; it needs ``fisher_tokens``."""
        return False

    @property
    def halves(self) -> bool:
        """Whether ``solve`` is given the half of the text by itself (``StatisticSet.half``)."""
        return False

    @property
    def probe_tokens(self) -> int:
        """The number of tokens on which ``prepare`` runs parts of the block; 0 for none."""
        return 0

    def prepare(
        self, inputs: Sequence[ScaledInput], source_of: Tensor | None, loss_of: OutputLoss | None
    ) -> ChannelScales:
        """Return scales for the channels of an input; called only if ``scales`` is set.

        Args:
            inputs: one input, or one for each expert, all with the same channels. They come from
                one norm or linear, the source.
            source_of: int64 [in], for each channel the channel of the source that makes it.
                Channels with the same source channel get the same scale. None if each has its own.
            loss_of: runs the attention or MLP and returns its error. None if the source is a
                linear, or if ``probe_tokens`` is 0.
        """
        raise NotImplementedError(f"{type(self).__name__} chooses no scales.")

    def solve(
        self,
        weights: Sequence[Tensor],
        statistics: StatisticSet | None,
        sensitivity: Sensitivity | None = None,
    ) -> list[QuantizedLinear]:
        """Quantize the linears that read one input. The base class rounds to nearest.

        If the quantizer scales, the scales are already folded into the weights and the statistics.
        Where several processes share the work, each call gets some rows of the weights: a row must
        be solved alike whatever the others are.

        Args:
            weights: [out, in] each, float32, bfloat16 or float16, all with the same ``in``.
            statistics: the statistics of their input; None only if ``needs`` is empty.
            sensitivity: how much the loss feels them, where ``fisher_tokens`` asks for it and text
                that reached them had gradients; else it is left out.

        Returns:
            For each weight its codes and grid.

        Raises:
            ValueError: there is NaN or Inf, shapes do not fit, or statistics are missing.
        """
        if statistics is None and self.needs:
            raise ValueError(
                f"{type(self).__name__} needs calibration; give a calibration set, or use rtn."
            )
        gram = None if statistics is None else statistics.gram()
        if gram is not None and sensitivity is not None:
            (gram,) = felt_grams([gram], [sensitivity.saliency])
        if self.spec.per_tensor:
            return self._on_one_scale(weights, gram)
        spec = _core.with_global_scale(self.spec, weights)
        return [self.fitted(weight, spec, gram) for weight in weights]

    def _on_one_scale(
        self, weights: Sequence[Tensor], gram: Tensor | None
    ) -> list[QuantizedLinear]:
        """Round weights to nearest with one scale, fitted to all of them."""
        whole = self.fitted(torch.cat(list(weights)), self.spec, gram)
        grid, found, first = whole.grid, [], 0
        for weight in weights:
            rows = slice(first, first + len(weight))
            own = Grid(grid.scale[rows].clone(), grid.zero[rows].clone(), grid.spec)
            codes = whole.codes[rows].clone()  # one result does not keep the others' memory
            found.append(QuantizedLinear(codes, own, dead_channels=whole.dead_channels))
            first += len(weight)
        return found

    def round(self, weights: Sequence[Tensor]) -> list[QuantizedLinear]:
        """Round linears whose input no token has reached, so that there are no statistics.

        The grids weigh all channels equally. For arguments and errors see ``solve``.
        """
        results = []
        if self.spec.per_tensor:
            alike = torch.eye(weights[0].shape[1], device=weights[0].device)
            return self._on_one_scale(weights, alike)
        spec = _core.with_global_scale(self.spec, weights)
        for weight in weights:
            alike = torch.eye(weight.shape[1], device=weight.device)
            grid = _core.fit_grid(weight, spec, alike)  # read where range is "gram"
            results.append(self.on_grid(weight, grid))
        return results

    @staticmethod
    def fitted(weight: Tensor, spec: GridSpec, gram: Tensor | None = None) -> QuantizedLinear:
        """Round a weight to nearest, on grids that are fitted to its groups.

        Args:
            weight: [out, in]; float32, bfloat16 or float16.
            spec: what the grids are like, and how their ranges are chosen.
            gram: of its input, [in, in] float32. The range ``gram`` needs it, and the result then
                has a ``loss``.

        Raises:
            ValueError: there is NaN or Inf, shapes do not fit, or the Gram is missing.
        """
        return _core.rtn(weight, spec, gram)

    @staticmethod
    def on_grid(weight: Tensor, grid: Grid) -> QuantizedLinear:
        """Round a weight to nearest, on a grid that is given.

        Args:
            weight: [out, in]; float32, bfloat16 or float16.
            grid: scales and zero points, [out, groups] each.

        Raises:
            ValueError: there is NaN or Inf, or shapes do not fit.
        """
        return QuantizedLinear(_core.quantize(weight, grid), grid)
