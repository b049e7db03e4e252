"""What rotations that are folded into SmolLM2-135M change at 2, 3 and 4 bits, in ten languages.

    python benchmarks/python/rotations_smollm2.py TEXT OUT [--rows gptq:3:none gptq:3:residual:0]
    python benchmarks/python/rotations_smollm2.py --prove

A rotation is an orthogonal transform Q of the residual stream (``residual``), one of the values of
each key-value head (``heads``), or ``both``. It is folded into the weights, so that the model runs
as before, and is quantized after that. ``--prove`` prints by how much the logits change in float64.

A row is METHOD:BITS:ROTATION[:SEED], where METHOD is rtn (ranges of least squared error), gptq
(``propagate="float"``) or best (``quality="best"``). Groups of 64 channels; the
linears of the blocks are quantized, embedding and head are not. TEXT is a folder with
LANG/{calib,eval}.txt. Rows are added to the file OUT as they are found, and those that it has
already are not found again; the table is of all rows in it.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rotations import ROTATIONS, gather, largest_change, rotate, rotated_gram, solve
from torch import Tensor

import mlcalib
from mlcalib.evaluation import eval_text, fidelity_of, reference_of
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer, shared_copy

TOKENS, SEQ_LEN, SCORED, GROUP = 20_480, 512, 1_024, 64
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", "range": "mse"},
    "best": {"quality": "best"},
}
ROWS = [
    f"{method}:{bits}:{rotation}"
    for method, widths in {"gptq": (3, 2, 4), "rtn": (3, 2, 4), "best": (3, 2)}.items()
    for bits in widths
    for rotation in ("none", *(f"{name}:{seed}" for name in ROTATIONS for seed in range(3)))
]
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Student's t of 95 % intervals, by the number of seeds."""


def measure(
    model: Any, tokenizer: Any, text: Path, rows: list[str], out: Path
) -> list[dict[str, Any]]:
    """Return the rows of a file, to which those that it lacks were added, one after the other."""
    found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    corpus = f"files:{text}"
    calibration = mlcalib.calibration(tokenizer, "multi10", corpus, tokens=TOKENS, seq_len=SEQ_LEN)
    scale = {"tokens": SCORED, "seq_len": SEQ_LEN}
    texts = eval_text(tokenizer, "multi10", corpus, None, SCORED)
    reference, first = reference_of(model, texts, **scale)
    grams: dict[str, Tensor] = {}
    for row in rows:
        if any(each["row"] == row for each in found):
            continue
        begun = time.monotonic()
        method, bits, rotation, *seed = row.split(":")
        start, changes = model, dict[str, Tensor]()
        if rotation != "none":
            start, changes = rotate(model, rotation, int(*seed))
            start.to(torch.float32)
        if method == "gptq":
            if not grams:
                grams = gather(model, torch.cat(list(calibration.ids.values())))
            start = shared_copy(start)
            made = {name: rotated_gram(gram, changes.get(name)) for name, gram in grams.items()}
            solve(start, made, int(bits), GROUP)
        else:
            start = mlcalib.quantize(
                start,
                calibration if method == "best" else None,
                **METHODS[method],
                bits=int(bits),
                group_size=GROUP,
                tokenizer=tokenizer,
                format="dense",
                progress=False,
            ).model
        scores = fidelity_of(start, texts, reference, **scale)
        found.append(
            {
                "row": row,
                "kl": {code: float(each.kl.mean()) for code, each in scores.items()},
                "rise": {
                    code: float((each.loss - first[code].loss).mean())
                    for code, each in scores.items()
                },
                "seconds": round(time.monotonic() - begun),
            }
        )
        with out.open("a") as file:
            file.write(json.dumps(found[-1]) + "\n")
        print(row, *(f"{value:.3f}" for value in found[-1]["kl"].values()), flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: of each row the mean over seeds, and its change from no rotation.

    The interval, 95 % by Student's t, is over seeds of the rotation; text and model are the same.
    """
    lines = [
        "| quantizer | rotation | seeds | KL mean | KL worst | change of mean | change of worst |"
        " rise mean | rise worst |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    of: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        of.setdefault(":".join(each["row"].split(":")[:3]), []).append(each)
    order = [":".join(row.split(":")[:3]) for row in ROWS]
    for name in sorted(of, key=order.index):
        method, bits, rotation = name.split(":")
        columns = [
            [pick(each[metric].values()) for each in of[name]]
            for metric in ("kl", "rise")
            for pick in (statistics.fmean, max)
        ]
        mean, worst, *rises = (f"{statistics.fmean(column):.3f}" for column in columns)
        changes = ["", ""]
        if rotation != "none" and f"{method}:{bits}:none" in of:
            (start,) = of[f"{method}:{bits}:none"]
            starts = (statistics.fmean(start["kl"].values()), max(start["kl"].values()))
            changes = [shift(column, begun) for column, begun in zip(columns, starts, strict=False)]
        cells = [f"W{bits} {method}", rotation, str(len(of[name])), mean, worst, *changes]
        lines.append(f"| {' | '.join([*cells, *(f'+{rise}' for rise in rises)])} |")
    return "\n".join(lines)


def shift(values: list[float], start: float) -> str:
    """Return how far the mean of values is from where they start, with its interval over seeds."""
    by = statistics.fmean(values) - start
    if len(values) not in T_95:
        return f"{by:+.3f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{by:+.3f} [{by - half:+.3f}, {by + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--prove", action="store_true")
    given = parser.parse_args()
    source = str(find_smollm2())
    model, tokenizer = load_model(source), load_tokenizer(source)
    if given.prove:
        ids = torch.randint(len(tokenizer), (1, 64), generator=torch.Generator().manual_seed(0))
        for name in ROTATIONS:
            change = largest_change(model, rotate(model, name, 0)[0], ids)
            print(f"{name}: the largest change of a logit is {change:.1e} of the largest logit")
        return
    print(table(measure(model, tokenizer, given.text, given.rows, given.out)))


if __name__ == "__main__":
    main()
