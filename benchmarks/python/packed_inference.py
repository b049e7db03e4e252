"""SmolLM2-135M on packed weights against dense ones and peers: tokens per second, peak memory.

    python benchmarks/python/packed_inference.py [NAME ...] [--threads 2] [--clock cpu] [--json OUT]

Each run is a process of its own: it loads the model, runs a prompt of 512 tokens (prefill) and then
32 tokens, one at a time, on the cache (decode); rates are the best of the repeats. Peak memory is
that of the process (VmHWM) less what it took once torch and transformers were imported. Codes are
rounded to nearest, group 64; all models are bfloat16 unless their name says otherwise, embeddings
and lm_head dense. `GB/s` is what decoding reads of the model's weights, to be held against the
machine's own: the best sum over 256 MB of floats, measured first. `--clock cpu` counts the
process's own seconds: what one thread would do on a machine that is not busy. Peers (torchao,
optimum-quanto, llama-cpp-python on a GGUF file in groups of 32) are skipped, with the reason, where
they are not installed or fail.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT, DECODED, GROUP = 512, 32, 64
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
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
    "llama.cpp Q4_0",
    "llama.cpp Q8_0",
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
    if kind == "llama.cpp":
        return LlamaCpp(folders[rest], torch.get_num_threads())
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


class LlamaCpp:
    """llama.cpp, called as the models of transformers are below."""

    def __init__(self, folder: str, threads: int) -> None:
        import llama_cpp

        options = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self._llama = llama_cpp.Llama(
            f"{folder}/model.gguf", n_ctx=2 * PROMPT, n_batch=PROMPT, n_ubatch=PROMPT, **options
        )
        self.past_key_values = self

    def __call__(self, ids: Any, past_key_values: Any = None, **_: Any) -> "LlamaCpp":
        import torch

        if past_key_values is None:
            self._llama.reset()
        self._llama.eval(ids[0].tolist())
        logits = self._llama._ctx.get_logits()  # of the last token
        vocabulary = self._llama.n_vocab()
        self.logits = torch.frombuffer(
            (ctypes.c_float * vocabulary).from_address(ctypes.addressof(logits.contents)),
            dtype=torch.float32,
        ).view(1, 1, vocabulary)
        return self


def child(
    name: str, folders: dict[str, str], threads: int, repeats: int, clock: str
) -> dict[str, float]:
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401 - not the model's memory

    import mlcalib  # noqa: F401

    now = CLOCKS[clock]
    torch.set_num_threads(threads)
    ids = torch.randint(0, 49152, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    before = memory()
    start = now()
    model = load(name, folders)
    result = {"load s": now() - start}
    prefill, decode = [], []
    with torch.no_grad():  # quanto fails in inference_mode
        for _ in range(repeats + 1):  # the first warms up
            start = now()
            given = model(ids, use_cache=True, logits_to_keep=1)
            prefill.append(now() - start)
            start = now()
            for _ in range(DECODED):
                token = given.logits[:, -1:].argmax(-1)
                given = model(token, past_key_values=given.past_key_values, use_cache=True)
            decode.append(now() - start)
    result["prefill tokens/s"] = PROMPT / min(prefill[1:])
    result["decode tokens/s"] = DECODED / min(decode[1:])
    result["peak MB"] = memory() - before
    if not name.startswith(("torchao", "quanto", "llama.cpp")):  # whose tensors do not tell
        result["weights MB"] = weight_bytes(model) / 1e6
        result["GB/s"] = result["weights MB"] / 1e3 * result["decode tokens/s"]
    return result


def prepare(folder: Path) -> dict[str, str]:
    """Write SmolLM2-135M dense in bfloat16, and rounded to 4 and 8 bits."""
    import torch

    from mlcalib._core import GridSpec, rtn
    from mlcalib.checkpoints import save_checkpoint
    from mlcalib.cli.demo import find_smollm2
    from mlcalib.formats import formats
    from mlcalib.models.loading import load_model, load_tokenizer

    source = str(find_smollm2())
    model, tokenizer = load_model(source, "float32"), load_tokenizer(source)
    model.to(torch.bfloat16)  # the rotary frequencies too; loading computes them anew
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
    for kind, bits in (("Q4_0", 4), ("Q8_0", 8)):
        spec = GridSpec(bits, 32, symmetric=True, scale_dtype=torch.float16)
        quantized = {name: rtn(weight.detach(), spec) for name, weight in linears.items()}
        folders[kind] = str(folder / kind)
        save_checkpoint(model, tokenizer, folder / kind, formats.get("gguf")(), quantized, {})
    model.save_pretrained(folder / "dense")
    return folders


def bandwidth(threads: int, clock: str) -> float:
    """Return what the machine reads at best, in GB/s."""
    import torch

    now = CLOCKS[clock]
    torch.set_num_threads(threads)
    values = torch.ones(64 << 20)
    times = []
    for _ in range(8):
        start = now()
        values.sum()
        times.append(now() - start)
    return values.numel() * 4 / min(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.names or list(NAMES)  # argparse holds a default list to choices as one
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no such model: {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    if arguments.child:
        folders = json.loads(arguments.child)
        options = (arguments.threads, arguments.repeats, arguments.clock)
        print(json.dumps(child(names[0], folders, *options)))
        return
    from mlcalib import _core

    print(
        f"{_core.isa()}, {arguments.threads} threads, {arguments.clock} clock, "
        f"load {os.getloadavg()[0]:.1f}, {bandwidth(arguments.threads, arguments.clock):.1f} GB/s\n"
    )
    shared = [f"--{key}={getattr(arguments, key)}" for key in ("threads", "repeats", "clock")]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = prepare(Path(temporary))
        for name in names:
            done = subprocess.run(
                [sys.executable, __file__, name, *shared, "--child", json.dumps(folders)],
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
