"""Score the dequantized weights of several tools on the same text, and print a table.

    python benchmarks/peers/score.py TEXT PREPARED RESULTS [--scored 1024]

Run in mlcalib's environment. RESULTS has NAME.safetensors and NAME.json of each tool, as
``tools.py`` writes them. KL divergence from the float model and the rise of its token loss, mean
and worst over ten languages.
"""

import argparse
import copy
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file

from mlcalib.evaluation import eval_text, fidelity_of, reference_of
from mlcalib.models.loading import load_model, load_tokenizer

SEQ_LEN = 512


def levels(weight: torch.Tensor, group_size: int) -> int:
    """Return the most values that a group has: more than 2^bits, and it is not quantized."""
    groups = weight.unflatten(1, (-1, group_size)).flatten(0, 1).sort(1).values
    step = groups.diff(dim=1)
    near = 1e-5 * groups.abs().amax(1, keepdim=True)  # of one level, within rounding
    return int((step > near).sum(1).max()) + 1


def check(model: Any, weights: dict[str, torch.Tensor], options: dict[str, int], name: str) -> None:
    """Refuse what is not the model in so many bits.

    Raises:
        ValueError: a linear of the blocks is missing, or is not quantized.
    """
    wanted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    if strange := wanted ^ weights.keys():
        raise ValueError(
            f"{name} did not quantize the linears of the blocks: {sorted(strange)[:3]}"
        )
    most = max(levels(weight, options["group_size"]) for weight in weights.values())
    if most > 2 ** options["bits"]:
        raise ValueError(f"{name} has a group with {most} values, not {2 ** options['bits']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--scored", type=int, default=1_024, help="tokens of each language")
    arguments = parser.parse_args()
    model = load_model(str(arguments.prepared / "float"))
    tokenizer = load_tokenizer(str(arguments.prepared / "float"))
    scale = {"tokens": arguments.scored, "seq_len": SEQ_LEN}
    texts = eval_text(tokenizer, "multi10", f"files:{arguments.text}", None, arguments.scored)
    reference, first = reference_of(model, texts, **scale)
    head = ["tool", "KL mean", "KL worst", "rise mean", "rise worst", "CPU s", "peak GB"]
    print("| " + " | ".join([*head, "versions"]) + " |")
    print("| --- |" + " --: |" * (len(head) - 1) + " --- |", flush=True)
    for record_file in sorted(arguments.results.glob("*.json")):
        record = json.loads(record_file.read_text())
        weights = load_file(record_file.with_suffix(".safetensors"))
        check(model, weights, record["options"], record["tool"])
        own = copy.deepcopy(model)
        for name, weight in weights.items():
            own.get_submodule(name).weight.data.copy_(weight)
        found = fidelity_of(own, texts, reference, **scale)
        kl = [each.mean(each.kl)[0] for each in found.values()]
        rise = [each.mean(each.loss - first[code].loss)[0] for code, each in found.items()]
        name = record["tool"]
        if name == "auto-round":
            name += f", {record['options']['iters']} steps"
        cells = [name, f"{fmean(kl):.4f}", f"{max(kl):.4f}", f"{fmean(rise):+.4f}"]
        cells += [f"{max(rise):+.4f}", f"{record['cpu_seconds']:.0f}"]
        cells += [f"{record['peak_bytes'] / 1e9:.1f}"]
        cells += [", ".join(f"{package} {at}" for package, at in record["versions"].items())]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
