"""A quantizer of your own: round to nearest with ranges that leave out each group's outliers.

    python examples/custom_quantizer.py [MODEL]     # default: SmolLM2-135M, if it is installed

In a package of yours, an entry point makes it a method of the library and the command line:

    [project.entry-points."mlcalib.quantizers"]
    clipped = "my_package.clipped:ClippedQuantizer"

    mlcalib quantize MODEL --out OUT --method clipped --option keep=0.995
"""

import sys
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

import mlcalib
from mlcalib import Grid, QuantizedLinear, Quantizer, QuantizerOptions
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer
from mlcalib.quantizers import quantizers
from mlcalib.statistics import StatisticSet


class Clipped(QuantizerOptions):
    """Options of ``clipped``; an unknown one, or a value outside its domain, is an error.

    Attributes:
        keep: share of each group's weights that the range covers; the others are clipped.
    """

    method = "clipped"  # so that objects are what method= of mlcalib.quantize takes

    keep: float = Field(default=0.98, gt=0.5, le=1)


@quantizers.register("clipped")  # a module of a package's own, clipped.py, needs no name here
class ClippedQuantizer(Quantizer):
    """Rounds every weight to the nearest level between two percentiles of its group."""

    Options = Clipped
    # needs = ("gram",) would give `solve` statistics, and refuse to run without calibration.

    def solve(
        self, weights: Sequence[Tensor], statistics: StatisticSet | None
    ) -> list[QuantizedLinear]:
        """See ``Quantizer.solve``: linears that read the same input, [out, in] each."""
        return [self._round(weight.float()) for weight in weights]

    def _round(self, weight: Tensor) -> QuantizedLinear:
        size = weight.shape[1] if self.spec.group_size == -1 else self.spec.group_size
        groups = torch.stack([self._fit(group) for group in weight.split(size, dim=1)], dim=-1)
        grid = Grid(groups[0], groups[1].to(torch.uint8), self.spec)
        return self.on_grid(weight, grid)

    def _fit(self, group: Tensor) -> Tensor:
        """Return scale and zero point of each row, [2, out]; weight ≈ scale · (code - zero)."""
        outside = (1 - self.options.keep) / 2
        low, high = group.quantile(torch.tensor([outside, 1 - outside]), dim=1)
        levels = 2**self.spec.bits - 1
        if self.spec.symmetric:
            high = torch.maximum(-low, high)
            zero, span = torch.full_like(high, (levels + 1) // 2), 2 * high
        else:
            low, high = low.clamp(max=0), high.clamp(min=0)  # zero stays exact
            span = high - low
            zero = (-low / span.clamp(min=1e-8) * levels).round()
        # What a checkpoint will hold decides the codes, so the scale is rounded to its dtype first.
        scale = (span / levels).to(self.spec.scale_dtype).float()
        return torch.stack([scale.clamp(min=1e-8), zero])


def main(model: str) -> None:
    """Compare it with round to nearest: the loss of each layer's output, per language."""
    live, tokenizer = load_model(model), load_tokenizer(model)
    calibration = mlcalib.calibration(tokenizer, "en,sw,zh", "sample", tokens=768, seq_len=128)
    print(f"{'method':>16} {'keep':>6}  sum of the layers' losses per token")
    for method in [
        mlcalib.RTN(group_size=64),
        *(Clipped(group_size=64, keep=keep) for keep in (1.0, 0.99, 0.95)),
    ]:
        quantized = mlcalib.quantize(live, calibration, tokenizer=tokenizer, method=method)
        sums = {
            code: sum(losses[code] for losses in quantized.losses.values())
            for code in calibration.ids
        }
        shown = "  ".join(f"{code} {loss:8.4g}" for code, loss in sums.items())
        print(f"{method.method:>16} {getattr(method, 'keep', ''):>6}  {shown}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(find_smollm2()))
