"""The compiled core: arithmetic on tensors; it knows no module, language or file."""

from collections.abc import Mapping, Sequence
from typing import Literal, Never, overload

import torch
from torch import Tensor

Range = Literal["minmax", "mse", "gram", "gram_block"]
Order = Literal["activation", "natural"]
Numbers = Literal["integer", "nf4", "e2m1", "e4m3"]

class _Extension(type):
    """The metaclass of compiled classes."""

class GridSpec(metaclass=_Extension):
    """The values a weight may take: 2^bits levels per group of consecutive input channels.

    A level is the group's scale times one of ``numbers``: an ``integer`` (code - zero); one of the
    16 of NormalFloat (``nf4``, arXiv 2305.14314); a float of 4 bits (``e2m1``, up to 6) or 8 bits
    (``e4m3``, up to 448), whose codes are their bits. All but integers have 4 or 8 bits and no zero
    points: they are symmetric, with zeros of 0.

    ``group_size`` is the number of input channels that share a scale; -1 is the whole row. A last
    group may be shorter. ``symmetric`` fixes the zero point at mid-range. ``range`` chooses the
    range of each group: its extremes (``minmax``), or the best of shrunk ranges by squared error:
    each channel's weighted alike (``mse``) or by the diagonal of the Gram (``gram``), or all errors
    and their products by the group's block of the Gram (``gram_block``). ``scale_dtype`` (float32,
    bfloat16 or float16) is what a checkpoint will hold: scales are rounded to it before codes are
    chosen. For ``e2m1`` and ``e4m3`` it may also be float8_e8m0fnu, powers of two as in OCP MX, or
    float8_e4m3fn: scales are then FP8 numbers divided by ``global_scale``, a float32. 0 stands for
    what gives the largest group of the weights that are fitted together the number 448; the spec of
    a fitted grid has the value. For ``nf4`` it may also be uint8: scales, less ``global_scale``
    (0: their mean over the weight), are codes of ``nested_numbers`` in blocks of 256, row by row,
    each with a magnitude of its own (double quantization, arXiv 2305.14314, section 3).

    ``super_block`` is a number of input channels, whole groups of integers, whose scales are
    multiples of one number in ``scale_dtype``: from 1 to 2^scale_bits - 1 times, or where
    ``symmetric`` from -2^(scale_bits - 1) to 2^(scale_bits - 1) - 1 times but not 0, so that the
    sign of a scale decides on which side of 0 there is a level more. Where they are not symmetric,
    groups have no zero points, but minima, which are from 0 to 2^scale_bits - 1 times a second
    number: a level is scale · code - minimum. These are the K-quants of GGUF. 0 stands for none.

    ``per_tensor`` gives all weights that are fitted together one scale, which is repeated for each
    row; ranges are then chosen by the error of all of them.

    Raises:
        ValueError: bits outside 2…8, a group size neither -1 nor positive, an unknown range, other
            numbers with other bits than theirs or with ``symmetric=False``, a ``scale_dtype`` or a
            ``global_scale`` that the numbers do not have, a ``super_block`` that ``group_size``
            does not divide, other ``scale_bits`` than 2…8 with one or than 0 without,
            ``per_tensor`` with groups, zero points or scales in FP8.
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int = 128,
        symmetric: bool = False,
        range: Range = "minmax",  # noqa: A002
        scale_dtype: torch.dtype = ...,
        numbers: Numbers = "integer",
        global_scale: float = 0.0,
        super_block: int = 0,
        scale_bits: int = 0,
        per_tensor: bool = False,
    ) -> None: ...
    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def range(self) -> Range: ...
    @property
    def scale_dtype(self) -> torch.dtype: ...
    @property
    def numbers(self) -> Numbers: ...
    @property
    def global_scale(self) -> float: ...
    @property
    def super_block(self) -> int: ...
    @property
    def scale_bits(self) -> int: ...
    @property
    def per_tensor(self) -> bool: ...
    @property
    def has_minima(self) -> bool: ...
    def groups(self, channels: int) -> int: ...
    def __getstate__(self) -> tuple[int, int, bool, str, torch.dtype, str, float, int, int]: ...
    def __setstate__(
        self, state: tuple[int, int, bool, str, torch.dtype, str, float, int, int], /
    ) -> None: ...

class Grid(metaclass=_Extension):
    """``scale`` float32 and ``zero`` uint8, both [rows, groups]; weight ≈ scale · (code - zero).

    For other numbers than integers, scale · the number of the code. Where the spec ``has_minima``,
    ``zero`` is float32, and weight ≈ scale · code - zero.
    """

    def __init__(self, scale: Tensor, zero: Tensor, spec: GridSpec) -> None: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def zero(self) -> Tensor: ...
    @property
    def spec(self) -> GridSpec: ...

def with_global_scale(spec: GridSpec, weights: Sequence[Tensor]) -> GridSpec: ...
def nested_numbers() -> Tensor: ...
def fit_grid(weight: Tensor, spec: GridSpec, gram: Tensor | None = None) -> Grid: ...
def quantize(weight: Tensor, grid: Grid) -> Tensor: ...
def dequantize(codes: Tensor, grid: Grid) -> Tensor: ...

class QuantizedLinear(metaclass=_Extension):
    """``codes`` uint8 [rows, cols] in the weight's own column order, and the grid they index.

    ``loss`` is tr(D G Dᵀ) with D = weight - dequantized, or None where no Gram was given. ``damp``
    is the damping used, a fraction of the mean of the Gram's diagonal; ``dead_channels`` counts the
    channels that no calibration token excited (they are rounded). ``input_bound`` is the largest
    magnitude of its input that a checkpoint with static activations holds, or 0 where it is not
    known. ``correction`` is the strength of the correction for errors of its input (``corrected``)
    that it was solved with, or 0.
    """

    def __init__(
        self,
        codes: Tensor,
        grid: Grid,
        *,
        loss: float | None = None,
        damp: float = 0.0,
        dead_channels: int = 0,
        input_bound: float = 0.0,
        correction: float = 0.0,
    ) -> None: ...
    @property
    def codes(self) -> Tensor: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def damp(self) -> float: ...
    @property
    def dead_channels(self) -> int: ...
    @property
    def input_bound(self) -> float: ...
    @property
    def correction(self) -> float: ...
    def replaced(
        self,
        *,
        grid: Grid | None = None,
        input_bound: float | None = None,
        correction: float | None = None,
    ) -> QuantizedLinear:
        """Return the same with what is given in its place."""

    def dequantize(self) -> Tensor: ...
    def to(self, device: torch.device) -> QuantizedLinear: ...

@overload
def losses(weight: Tensor, quantized: QuantizedLinear, grams: Sequence[Tensor]) -> list[float]: ...
@overload
def losses(change: Tensor, grams: Sequence[Tensor]) -> list[float]: ...
@overload
def losses(change: Tensor, grams: Sequence[Statistic]) -> list[float]: ...
def rtn(weight: Tensor, spec: GridSpec, gram: Tensor | None = None) -> QuantizedLinear: ...

class CorrectionOptions(metaclass=_Extension):
    """Options of ``corrected``.

    ``strength`` is the share of the correction that is taken, 0 to 1; ``ridge`` is added to the
    Gram's diagonal, as a fraction of its mean.
    """

    def __init__(self, strength: float = 0.25, ridge: float = 0.05) -> None: ...
    @property
    def strength(self) -> float: ...
    @property
    def ridge(self) -> float: ...

def corrected(
    weights: Sequence[Tensor], gram: Tensor, deviation: Tensor, options: CorrectionOptions = ...
) -> list[Tensor]:
    """What weights [out, in] of one input should be rounded from, float32.

    W + strength · W E (G + λI)⁻¹, with E of the statistic ``deviation`` and G of ``gram``, both
    float32 [in, in]. Its outputs for the quantized model's activations are nearer to those of W for
    the float model's: the target of GPTAQ (arXiv 2504.02692). Raises as ``gptq`` does.
    """

class GptqOptions(metaclass=_Extension):
    """Options of ``gptq``.

    ``order="activation"`` visits channels by falling diagonal of the Gram, with the groups and
    grids of the original weight (static groups); ``"natural"`` from first to last. With
    ``static_grid=False`` (natural order only) a group's grid is fitted when it is reached, to the
    weights GPTQ then holds. ``block`` is the number of columns solved between two matrix products.
    ``refit`` rounds follow the solve: scales become those of least loss given the codes, then all
    is solved again on these (not after the last); each row keeps the best that it had.
    ``output_damp`` is to output Grams what ``damp`` is to the Gram. ``sweeps`` of coordinate
    descent follow: scales become the best given the codes, and in each sweep every code becomes the
    best that it can alone.
    """

    def __init__(
        self,
        grid: GridSpec = ...,
        damp: float = 0.01,
        block: int = 128,
        order: Order = "activation",
        static_grid: bool = True,
        refit: int = 0,
        output_damp: float = 1.0,
        sweeps: int = 0,
    ) -> None: ...
    @property
    def grid(self) -> GridSpec: ...
    @property
    def damp(self) -> float: ...
    @property
    def block(self) -> int: ...
    @property
    def order(self) -> Order: ...
    @property
    def static_grid(self) -> bool: ...
    @property
    def refit(self) -> int: ...
    @property
    def output_damp(self) -> float: ...
    @property
    def sweeps(self) -> int: ...

@overload
def gptq(weight: Tensor, gram: Tensor, options: GptqOptions = ...) -> QuantizedLinear: ...
@overload
def gptq(
    weights: Sequence[Tensor], gram: Tensor, options: GptqOptions = ...
) -> list[QuantizedLinear]: ...
@overload
def gptq(
    weights: Sequence[Tensor], gram: Tensor, outputs: Sequence[Tensor], options: GptqOptions = ...
) -> list[QuantizedLinear]: ...

class LinearGroup(metaclass=_Extension):
    """Linears that read the same input: ``weights`` [rows, cols] each, and its ``gram``."""

    def __init__(self, weights: Sequence[Tensor], gram: Tensor) -> None: ...
    @property
    def weights(self) -> list[Tensor]: ...
    @property
    def gram(self) -> Tensor: ...

class AwqOptions(metaclass=_Extension):
    """Options of ``awq_scale``.

    ``grid`` is that of the scaled weights; its range is chosen anew for each of the ``points``
    candidates, the exponents 0, 1/points, … (points - 1)/points. A sketch of ``sketch`` rows scores
    them (a smaller Gram is not sketched); the ``exact`` best are scored again with the whole Gram.
    """

    def __init__(
        self, grid: GridSpec = ..., points: int = 20, exact: int = 3, sketch: int = 64
    ) -> None: ...
    @property
    def grid(self) -> GridSpec: ...
    @property
    def points(self) -> int: ...
    @property
    def exact(self) -> int: ...
    @property
    def sketch(self) -> int: ...

class AwqScale(metaclass=_Extension):
    """What ``awq_scale`` found.

    ``scale`` float32 [cols]: weights are multiplied by it, inputs divided. ``loss`` is
    Σ tr(D G Dᵀ), D = W - Q(W·s)/s, ``unscaled`` the same without a scale. ``scores`` float64
    [points] are the losses of all candidates as the sketch estimates them.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def exponent(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def unscaled(self) -> float: ...
    @property
    def scores(self) -> Tensor: ...

def awq_candidates(mean: Tensor, points: int = 20, source_of: Tensor | None = None) -> Tensor: ...
def awq_scale(
    groups: Sequence[LinearGroup],
    mean: Tensor,
    options: AwqOptions = ...,
    source_of: Tensor | None = None,
) -> AwqScale: ...
def awq_clip(weight: Tensor, gram: Tensor, spec: GridSpec) -> Grid: ...

class Statistic(metaclass=_Extension):
    """A summary of activations that adds up over tokens, batches, languages and processes.

    ``make_statistic`` makes them: ``gram`` (Σ x xᵀ), ``moments`` (``sum``, ``absolute`` and
    ``square`` of each channel, float64), ``range`` (``low`` and ``high`` of each channel; they add
    up as extremes do, and a weight says only whether the other side counts), ``histogram``
    (``counts`` of each channel's |x| / ``unit`` in the bins of ``statistics.histogram_edges``) and
    ``deviation`` (Σ (f - x) xᵀ, where f, the ``reference`` of an update, holds the float model's
    activations for the same tokens; ``compares`` says that it needs one).
    ``rescale`` is as if every activation had been multiplied, channel by channel, by positive
    factors; a histogram keeps its bins and multiplies the unit, 1 at first.

    NaN and Inf are a ValueError: on the CPU of the update, which then has added nothing; on a GPU,
    which no update waits for, of ``check_finite`` and of whatever reads the statistic.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def tokens(self) -> float: ...
    @property
    def compares(self) -> bool: ...
    def update(self, x: Tensor, reference: Tensor | None = None) -> None: ...
    def check_finite(self) -> None: ...
    def merge(self, other: Statistic, weight: float = 1.0) -> None: ...
    def rescale(self, factors: Tensor) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def view(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...
    def packed(self, device: torch.device) -> dict[str, Tensor]:
        """The tensors as they are kept, of a Gram one triangle, and ``tokens``.

        For what adds them up over processes. They share memory with the statistic; those of an
        empty one are made on ``device``. Raises as ``check_finite`` does.
        """

    def load_packed(self, packed: Mapping[str, Tensor]) -> None:
        """Replace what is kept by tensors as of ``packed``, without a copy."""

    @property
    def adds(self) -> dict[str, Literal["sum", "least", "greatest", "alike"]]:
        """Part → how those of two statistics become one."""

def make_statistic(name: str, channels: int) -> Statistic: ...
def update(statistics: Sequence[Statistic], x: Tensor, reference: Tensor | None = None) -> None: ...
def statistic_names() -> list[str]: ...
def pack(codes: Tensor, bits: int) -> Tensor: ...
def unpack(packed: Tensor, bits: int, columns: int) -> Tensor: ...
def pack_linear(quantized: QuantizedLinear) -> Tensor: ...
def unpack_linear(packed: Tensor, rows: int, columns: int, spec: GridSpec) -> QuantizedLinear: ...
def packed_linear(
    x: Tensor,
    packed: Tensor,
    rows: int,
    columns: int,
    spec: GridSpec,
    bias: Tensor | None = None,
) -> Tensor: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def device_types() -> list[str]: ...
def build_info() -> dict[str, str]: ...
