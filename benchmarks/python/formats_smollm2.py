"""What each format costs SmolLM2-135M in ten languages: by rounding, GPTQ en and GPTQ multi10.

    python benchmarks/python/formats_smollm2.py TEXT OUT.jsonl [--formats Q4_K_M W4-g64] [--table]

Each line of OUT is one format and calibration: bits per quantized weight, and in each language the
rise in token loss and the KL divergence from the float model. What OUT has already is not measured
again, so a run that was stopped goes on; --table prints what is there, and measures nothing.

Q4_K_M and its like are mixes of K-quants; since 256 does not divide the 576 channels of SmolLM2,
many of its linears have the types with blocks of 32 that llama.cpp takes instead. Rounding searches
ranges by squared error (range=mse). GPTQ is calibrated on the float model's activations. TEXT and
the model are those of quality_smollm2.py. Only linears of blocks are quantized, in every format.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlcalib
from mlcalib.common.gguf_types import MIXES
from mlcalib.evaluation import eval_text, fidelity_of, reference_of
from mlcalib.models.llm_int8 import run_in_int8
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer

TOKENS, SEQ_LEN, SCORED = 40_960, 512, 3_072
LLM_INT8 = "LLM.int8()"
GROUPS = {"group_size": 64, "format": "dense"}
ROWS = {"group_size": -1, "symmetric": True, "format": "dense"}
BLOCKS = {"group_size": 32, "symmetric": True, "format": "gguf"}
FORMATS: dict[str, dict[str, Any]] = {
    **{f"W{bits}-row": {"bits": bits, **ROWS} for bits in (8, 4)},
    **{f"W{bits}-g64": {"bits": bits, **GROUPS} for bits in (2, 3, 4, 5, 6)},
    **{name: {"scheme": name} for name in ("FP8_DYNAMIC", "NF4", "MXFP4A16", "NVFP4A16", *MIXES)},
    **{f"Q{bits}_0": {"bits": bits, **BLOCKS} for bits in (4, 5, 8)},
    LLM_INT8: {},
}
CALIBRATIONS = (None, "en", "multi10")


def known(out: Path) -> dict[tuple[str, str | None], dict[str, Any]]:
    lines = out.read_text().splitlines() if out.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["format"], row["calibration"]): row for row in rows}


def todo(formats: list[str], out: Path) -> Iterator[tuple[str, str | None]]:
    done = known(out)
    for name in formats:
        for calibration in CALIBRATIONS[:1] if name == LLM_INT8 else CALIBRATIONS:
            if (name, calibration) not in done:
                yield name, calibration


def measure(text: Path, out: Path, formats: list[str], scored: int) -> None:
    source, corpus = str(find_smollm2()), f"files:{text}"
    model, tokenizer = load_model(source), load_tokenizer(source)
    length = {"tokens": scored, "seq_len": SEQ_LEN}
    texts = eval_text(tokenizer, "multi10", corpus, None, scored)
    reference, first = reference_of(model, texts, **length)
    sets = {
        name: mlcalib.calibration(tokenizer, name, corpus, tokens=TOKENS, seq_len=SEQ_LEN)
        for name in CALIBRATIONS
        if name is not None
    }
    for name, calibration in todo(formats, out):
        if name == LLM_INT8:
            changed, bits = run_in_int8(load_model(source)), 8.0
        else:
            method = (
                {"method": "rtn", "range": "mse"} if calibration is None else {"method": "gptq"}
            )
            quantized = mlcalib.quantize(
                model,
                None if calibration is None else sets[calibration],
                tokenizer=tokenizer,
                propagate="float",
                progress=False,
                **method,
                **FORMATS[name],
            )
            changed = quantized.model
            bits = bits_per_weight(quantized)
        scores = fidelity_of(changed, texts, reference, **length)
        row = {
            "format": name,
            "calibration": calibration,
            "bits": bits,
            "rise": {c: s.token_loss[0] - first[c].token_loss[0] for c, s in scores.items()},
            "kl": {c: float(s.kl.mean()) for c, s in scores.items()},
        }
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}, {calibration or 'rounding'}: KL {mean(row['kl']):.4f}", flush=True)


def bits_per_weight(quantized: mlcalib.QuantizedModel) -> float:
    """Codes, scales (float32 ones count as 16 bits, as in checkpoints) and zero points."""
    total = weights = 0
    for linear in quantized.linears.values():
        spec, groups = linear.grid.spec, linear.grid.scale.numel()
        number = min(8 * spec.scale_dtype.itemsize, 16)
        scales, zeros = groups * number, 0 if spec.symmetric else groups * spec.bits
        if spec.super_block:
            scales = (
                groups * spec.scale_bits + groups * spec.group_size // spec.super_block * number
            )
            zeros = 0 if spec.symmetric else scales
        total += linear.codes.numel() * spec.bits + scales + zeros
        weights += linear.codes.numel()
    return total / weights


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def table(out: Path) -> None:
    print("| format | bits | by | KL mean | worst | rise mean | worst |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for row in known(out).values():
        by = "rounding" if row["calibration"] is None else f"GPTQ {row['calibration']}"
        numbers = [
            number
            for values in (row["kl"], row["rise"])
            for number in (mean(values), max(values.values()))
        ]
        cells = " | ".join(f"{number:.4f}" for number in numbers)
        print(f"| {row['format']} | {row['bits']:.2f} | {by} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--scored", type=int, default=SCORED, help="tokens of each language")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        measure(arguments.text, arguments.out, arguments.formats, arguments.scored)
    table(arguments.out)


if __name__ == "__main__":
    main()
