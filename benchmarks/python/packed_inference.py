"""SmolLM2-135M on packed weights against dense ones and peers: tokens per second, peak memory.

    python benchmarks/python/packed_inference.py [NAME ...] [--threads 2] [--repeats 3] [--json OUT]

Each run is a process of its own: it loads the model, runs a prompt of 512 tokens (prefill) and then
32 tokens, one at a time, on the cache (decode); rates are the best of the repeats. Peak memory is
that of the process (VmHWM) less what it took once torch and transformers were imported. Codes are
rounded to nearest, group 64; all models are bfloat16 unless their name says otherwise, embeddings
and lm_head dense. `GB/s` is what decoding reads of the model's weights, to be held against the
machine's own: the best sum over 256 MB of floats, measured first. Peers (torchao, optimum-quanto)
are skipped, with the reason, where they are not installed or fail.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT, DECODED, GROUP = 512, 32, 64
NAMES = (
    "bf16",
    "fp32",
    "packed 4 bit",
    "packed 4 bit fp32",
    "packed 8 bit",
    "torchao int4",
    "torchao int8",
    "quanto int4",
    "quanto int8",
)


def memory() -> float:
    """Return the peak of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def load(name: str, folders: dict[str, str]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    import mlcalib

    kind, _, rest = name.partition(" ")
    if kind == "packed":
        return mlcalib.load(folders[rest[:5]], "float32" if "fp32" in rest else "auto")
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folders["dense"], dtype=dtype)
    if kind == "torchao":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        int4 = PrototypeInt4WeightOnlyConfig(group_size=GROUP)
        quantize_(model.model, int4 if rest == "int4" else Int8WeightOnlyConfig())
    elif kind == "quanto":
        from optimum.quanto import freeze, qint4, qint8, quantize

        quantize(model.model, weights=qint4 if rest == "int4" else qint8)
        freeze(model)
    return model


def weight_bytes(model: Any) -> int:
    """Return what decoding a token reads; the embedding is tied to lm_head, which reads it all."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def child(name: str, folders: dict[str, str], threads: int, repeats: int) -> dict[str, float]:
    import torch
    import transformers  # noqa: F401 - its memory is not the model's

    torch.set_num_threads(threads)
    ids = torch.randint(0, 49152, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    before = memory()
    start = time.perf_counter()
    model = load(name, folders)
    result = {"load s": time.perf_counter() - start}
    prefill, decode = [], []
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            given = model(ids, use_cache=True, logits_to_keep=1)
            prefill.append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(DECODED):
                token = given.logits[:, -1:].argmax(-1)
                given = model(token, past_key_values=given.past_key_values, use_cache=True)
            decode.append(time.perf_counter() - start)
    result["prefill tokens/s"] = PROMPT / min(prefill[1:])
    result["decode tokens/s"] = DECODED / min(decode[1:])
    result["peak MB"] = memory() - before
    if not name.startswith(("torchao", "quanto")):  # whose tensors do not tell
        result["weights MB"] = weight_bytes(model) / 1e6
        result["GB/s"] = result["weights MB"] / 1e3 * result["decode tokens/s"]
    return result


def prepare(folder: Path) -> dict[str, str]:
    """Write SmolLM2-135M dense in bfloat16, and rounded to 4 and 8 bits."""
    import torch

    from mlcalib._core import GridSpec, rtn
    from mlcalib.demo import find_smollm2
    from mlcalib.formats import formats, save_checkpoint
    from mlcalib.models.loading import load_model, load_tokenizer

    source = str(find_smollm2())
    model, tokenizer = load_model(source, "bfloat16"), load_tokenizer(source)
    linears = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    folders = {"dense": str(folder / "dense")}
    for bits in (4, 8):
        spec = GridSpec(bits, GROUP, scale_dtype=torch.bfloat16)
        quantized = {name: rtn(weight.detach(), spec) for name, weight in linears.items()}
        form = formats.get("compressed-tensors")()
        folders[f"{bits} bit"] = str(folder / f"w{bits}")
        save_checkpoint(model, tokenizer, folder / f"w{bits}", form, quantized, {})
    model.save_pretrained(folder / "dense")
    return folders


def bandwidth(threads: int) -> float:
    """Return what the machine reads at best, in GB/s."""
    import torch

    torch.set_num_threads(threads)
    values = torch.ones(64 << 20)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - start)
    return values.numel() * 4 / min(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folders = json.loads(arguments.child)
        print(json.dumps(child(arguments.names[0], folders, arguments.threads, arguments.repeats)))
        return
    from mlcalib import _core

    print(
        f"{_core.isa()}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}, "
        f"{bandwidth(arguments.threads):.1f} GB/s\n"
    )
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = prepare(Path(temporary))
        for name in arguments.names:
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    name,
                    "--threads",
                    str(arguments.threads),
                    "--repeats",
                    str(arguments.repeats),
                    "--child",
                    json.dumps(folders),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{name}: skipped: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            if not rows:
                print("| model | " + " | ".join(row) + " |\n|---" + "|--:" * len(row) + "|")
            print(
                f"| {name} | " + " | ".join(f"{value:.1f}" for value in row.values()) + " |",
                flush=True,
            )
            rows.append({"name": name, **row})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
