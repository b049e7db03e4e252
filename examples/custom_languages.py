"""A set of languages of your own, and many mixtures of it from one pass of the model.

    python examples/custom_languages.py [MODEL]     # default: SmolLM2-135M, if it is installed

The set is examples/custom_languages.yaml, which the command line takes as well:

    mlcalib quantize MODEL --out OUT --languages examples/custom_languages.yaml --tokens 4000

Statistics add up: the Gram of a mixture is the weighted sum of its languages' Grams. So one pass
over the same number of tokens of each language gives every mixture, solved here for the first
blocks.
"""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import mlcalib
from mlcalib._core import losses
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.languages import language_set
from mlcalib.models.loading import find_smollm2, load_tokenizer
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.job import BlockView, Observation
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.solve import longest
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.statistics import mix

SET = Path(__file__).with_suffix(".yaml")
BLOCKS = 2


class Mixtures(Observation):
    """Solves some blocks for every mixture; the pass leaves the model as it is."""

    kinds = ("gram",)

    def __init__(
        self,
        blocks: Collection[str],
        quantizer: Quantizer,
        mixtures: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Take names of blocks, what solves, and name of a mixture → language → weight."""
        super().__init__()
        self.blocks, self.quantizer, self.mixtures = blocks, quantizer, mixtures
        self.paid: dict[str, dict[str, float]] = {name: {} for name in mixtures}

    def has(self, block_name: str) -> bool:
        """Return whether a block needs nothing; the pass ends with the last that does."""
        return block_name not in self.blocks or super().has(block_name)

    def see(self, block: BlockView) -> None:
        """Add the loss of each language, under each mixture, of the linears of a block."""
        for reader, members in block.adapter.linears_of(block.module).items():
            weights = [block.adapter.linear(block.module, each).weight for each in members]
            by_language = longest(block.statistics[reader])
            grams = [each.gram() for each in by_language.values()]
            for mixture, shares in self.mixtures.items():
                solved = self.quantizer.solve(weights, mix(by_language, shares))
                paid = self.paid[mixture]
                for weight, result in zip(weights, solved, strict=True):
                    found = losses(weight, result, grams)
                    for (code, each), loss in zip(by_language.items(), found, strict=True):
                        paid[code] = paid.get(code, 0.0) + loss / each.tokens


def main(model: str) -> None:
    """Print what each language pays under each mixture, against equal shares."""
    source, tokenizer = open_source(model, "auto").ready(), load_tokenizer(model)
    own = language_set(str(SET))
    print(f"set '{own.name}': {own.weights}\n")

    codes = ",".join(own.weights)  # equal shares: the weights come later, when statistics are mixed
    text = mlcalib.calibration(tokenizer, codes, "sample", tokens=4000, seq_len=128)
    print(text.table())

    gptq = quantizers.get("gptq")
    quantizer = gptq(gptq.Options(group_size=32), source.dtype)
    equal = dict.fromkeys(own.weights, 1.0)
    blocks = [name for name, _ in source.adapter.named_blocks(source.model)[:BLOCKS]]
    job = Mixtures(blocks, quantizer, {"equal": equal, own.name: own.weights, "en": {"en": 1.0}})
    run_pass(source, [job], text, propagate="float", stopwatch=Stopwatch(), description=None)

    print(f"\nloss per token of the first {BLOCKS} blocks, ÷ that with equal shares")
    for mixture, paid in job.paid.items():
        ratios = {code: paid[code] / job.paid["equal"][code] for code in own.weights}
        shown = "  ".join(f"{code} {ratio:5.2f}" for code, ratio in ratios.items())
        print(f"{mixture:>18}  {shown}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(find_smollm2()))
