"""Time and peak memory of `mlcalib quantize` on SmolLM2-135M, against the model's own forward.

    python benchmarks/python/quantize_smollm2.py [--dtype float32] [--repeats 3] [--out FILE.json]

64 sequences of 512 tokens, GPTQ W4 group 64, from a folder of safetensors; each run is a process of
its own. The baseline is the naive way in torch: the model's forward over the same tokens without
logits, and the Gram by `addmm_`, each in a process of its own too.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEQUENCES, SEQ_LEN = 64, 512


def child(kind: str, folder: str, dtype: str) -> dict[str, float]:
    """Run one measurement in this process."""
    import torch

    import mlcalib
    from mlcalib.models import find_adapter
    from mlcalib.models.loading import load_model, load_tokenizer

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 49152, (SEQUENCES, SEQ_LEN), generator=generator)
    seconds: dict[str, float] = {}
    if kind in ("quantized", "float"):
        calibration = mlcalib.calibration(None, corpus={"en": ids.tolist()}, seq_len=SEQ_LEN)
        quantized = mlcalib.quantize(
            folder, calibration, group_size=64, propagate=kind, dtype=dtype, progress=False
        )
        with tempfile.TemporaryDirectory() as out:
            quantized.save(Path(out) / "model")
        seconds = dict(quantized.seconds)
        # Loading is compared with nothing: the forward starts with the model in memory.
        seconds["total without load"] = sum(seconds.values()) - seconds["load"]
    else:
        model = load_model(folder, dtype)
        load_tokenizer(folder)
        if kind == "naive gram":
            naive_grams(model, find_adapter("LlamaForCausalLM"))
        start = time.perf_counter()
        with torch.inference_mode():
            for row in ids:
                model.model(row[None])
        seconds["total without load"] = time.perf_counter() - start
    seconds["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds


def naive_grams(model, adapter) -> None:
    """Accumulate one Gram per input the way every tool does: H.addmm_(x.T, x) in float32."""
    import torch

    for name, linear in adapter.named_linears(model):
        if name.endswith(("q_proj", "o_proj", "gate_proj", "down_proj")):
            gram = torch.zeros(linear.in_features, linear.in_features)

            def hook(_, args, gram=gram):
                x = args[0][0].float()
                gram.addmm_(x.T, x)

            linear.register_forward_pre_hook(hook)


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run.get(key, 0.0) for run in runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(*arguments.child, arguments.dtype)))
        return
    import torch

    from mlcalib import _core
    from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer

    kinds = ["forward", "naive gram", "float", "quantized"]
    with tempfile.TemporaryDirectory() as folder:
        load_model(str(find_smollm2()), arguments.dtype).save_pretrained(folder)
        load_tokenizer(str(find_smollm2())).save_pretrained(folder)
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(arguments.repeats):
            for kind in kinds:  # interleaved: a slow minute hits all of them
                command = [sys.executable, __file__, "--dtype", arguments.dtype]
                done = subprocess.run(
                    [*command, "--child", kind, folder], capture_output=True, text=True, check=True
                )
                runs[kind].append(json.loads(done.stdout.splitlines()[-1]))
    result = {kind: median(values) for kind, values in runs.items()}
    forward = result["forward"]["total without load"]
    print(
        f"SmolLM2-135M, {SEQUENCES} x {SEQ_LEN} tokens, {arguments.dtype}, isa {_core.isa()}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
        f"{platform.processor() or platform.machine()}, medians of {arguments.repeats}"
    )
    for kind, values in result.items():
        ratio = values["total without load"] / forward
        phases = ", ".join(f"{key} {value:.1f}" for key, value in values.items())
        print(f"{kind:12} {ratio:5.2f} x forward   {phases}")
    if arguments.out:
        arguments.out.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
