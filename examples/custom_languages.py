"""A set of languages of your own, and many mixtures of it from one pass of the model.

    python examples/custom_languages.py [MODEL]     # default: SmolLM2-135M, if it is installed

The set is examples/custom_languages.yaml, which the command line takes as well:

    mlcalib quantize MODEL --out OUT --languages examples/custom_languages.yaml --tokens 4000

Statistics add up: the Gram of a mixture is the weighted sum of its languages' Grams. So one pass
over the same number of tokens of each language gives every mixture, solved here for the first
blocks.
"""

import sys
from pathlib import Path

import torch

import mlcalib
from mlcalib._core import losses
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.languages import language_set
from mlcalib.models import find_adapter
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.solve import longest
from mlcalib.quantizers import quantizers
from mlcalib.statistics import mix

SET = Path(__file__).with_suffix(".yaml")
BLOCKS = 2


@torch.no_grad()
def main(model: str) -> None:
    """Print what each language pays under each mixture, against equal shares."""
    live, tokenizer = load_model(model), load_tokenizer(model)
    own = language_set(str(SET))
    print(f"set '{own.name}': {own.weights}\n")

    codes = ",".join(own.weights)  # equal shares: the weights come later, when statistics are mixed
    text = mlcalib.calibration(tokenizer, codes, "sample", tokens=4000, seq_len=128)
    print(text.table())

    mixtures = {"equal": dict.fromkeys(own.weights, 1.0), own.name: own.weights, "en": {"en": 1.0}}
    gptq = quantizers.get("gptq")
    quantizer = gptq(gptq.Options(group_size=32), live.dtype)
    paid = {name: dict.fromkeys(own.weights, 0.0) for name in mixtures}
    adapter = find_adapter(type(live).__name__)
    flow = Flow(live, adapter, text, Stopwatch())
    for name, block in adapter.named_blocks(live)[:BLOCKS]:
        collected = flow.collect(name, block, quantizer.needs, skipped=(), advance=True)
        flow.turn()
        statistics = {reader: longest(each) for reader, each in collected.items()}
        for reader, members in adapter.linears_of(block).items():
            weights = [adapter.linear(block, member).weight for member in members]
            grams = {code: each.gram() for code, each in statistics[reader].items()}
            for mixture, shares in mixtures.items():
                solved = quantizer.solve(weights, mix(statistics[reader], shares))
                for weight, result in zip(weights, solved, strict=True):
                    found = losses(weight, result, list(grams.values()))
                    for code, loss in zip(grams, found, strict=True):
                        paid[mixture][code] += loss / statistics[reader][code].tokens

    print(f"\nloss per token of the first {BLOCKS} blocks, ÷ that with equal shares")
    for mixture in mixtures:
        ratios = {code: paid[mixture][code] / paid["equal"][code] for code in own.weights}
        shown = "  ".join(f"{code} {ratio:5.2f}" for code, ratio in ratios.items())
        print(f"{mixture:>18}  {shown}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(find_smollm2()))
