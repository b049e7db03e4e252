"""A random decoder block of Llama-3.1-8B's shape on a GPU: seconds and memory of each phase.

    python benchmarks/python/block_cuda.py [--sequences 128] [--languages 10] [--json OUT]

Phases: the block's forward in bfloat16; the same with a Gram of each language for each of its four
inputs; the mix of the languages' Grams; GPTQ (4 bits, group 128) of its seven linears; the loss of
each of them in each language; the AWQ search for the linears of one input. Runs on the core alone.
Needs a GPU, and mlcalib built with MLCALIB_CUDA.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from mlcalib import _core

BLOCKS = 32
LENGTH = 2048
INPUTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The linears of each input, under the first of them."""

Grams = dict[str, list[_core.Statistic]]


class Clock:
    """Seconds and peak memory of each phase; the device is idle at both ends of one."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() / 1e9
        row = {"phase": name, "seconds": seconds, "of 32 blocks": BLOCKS * seconds, "peak GB": peak}
        self.rows.append(row)
        print(f"{name:32} {seconds:8.3f} s {BLOCKS * seconds:8.1f} s {peak:6.1f} GB", flush=True)


def block_of_llama() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=LENGTH, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("cuda"):
        block = LlamaDecoderLayer(config, 0).to(torch.bfloat16).eval()
        positions = LlamaRotaryEmbedding(config)(
            torch.zeros(1, 1, dtype=torch.bfloat16), torch.arange(LENGTH)[None]
        )
    return block, positions


def forward(block: nn.Module, hidden: Tensor, positions: tuple[Tensor, Tensor]) -> None:
    for sequence in hidden:
        block(sequence[None], position_embeddings=positions)


def gather(
    block: nn.Module, hidden: Tensor, positions: tuple[Tensor, Tensor], languages: int
) -> Grams:
    """The block's Grams, one for each language: sequence i is in language i % languages."""
    grams: Grams = {}
    at = 0
    hooks = []
    for name in INPUTS:
        linear = block.get_submodule(name)
        grams[name] = [_core.make_statistic("gram", linear.in_features) for _ in range(languages)]

        def update(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            grams[name][at % languages].update(inputs[0].flatten(0, -2))

        hooks.append(linear.register_forward_pre_hook(update))
    for at in range(len(hidden)):
        forward(block, hidden[at : at + 1], positions)
    for hook in hooks:
        hook.remove()
    return grams


def mixed(grams: Grams) -> dict[str, Tensor]:
    def mix(statistics: list[_core.Statistic]) -> Tensor:
        total = _core.make_statistic("gram", statistics[0].channels)
        for statistic in statistics:
            total.merge(statistic, 1 / len(statistics))
        return total.view()["gram"]

    return {name: mix(statistics) for name, statistics in grams.items()}


def weights_of(block: nn.Module, name: str) -> list[Tensor]:
    return [block.get_submodule(linear).weight.float() for linear in INPUTS[name]]


def measure(sequences: int, languages: int) -> list[dict[str, object]]:
    clock = Clock()
    block, positions = block_of_llama()
    hidden = torch.randn(sequences, LENGTH, 4096, device="cuda").to(torch.bfloat16)
    gather(block, hidden[:languages], positions, languages)  # cuBLAS chooses its kernels
    with clock.phase("forward"):
        forward(block, hidden, positions)
    with clock.phase("forward and Grams"):
        grams = gather(block, hidden, positions, languages)
    with clock.phase("mix"):
        mix = mixed(grams)
    options = _core.GptqOptions(_core.GridSpec(4, 128))
    quantized = {}
    for name, linears in INPUTS.items():
        weights = weights_of(block, name)
        with clock.phase(f"gptq {' '.join(linear.split('.')[1] for linear in linears)}"):
            quantized[name] = _core.gptq(weights, mix[name], options)
    with clock.phase("losses of all languages"):
        for name, results in quantized.items():
            for weight, linear in zip(weights_of(block, name), results, strict=True):
                _core.losses(weight - linear.dequantize(), grams[name])
    for name in INPUTS:
        groups = [_core.LinearGroup(weights_of(block, name), mix[name])]
        mean = mix[name].diagonal().sqrt()
        awq = _core.AwqOptions(_core.GridSpec(4, 128))
        with clock.phase(f"awq search {name.split('.')[1]}"):
            _core.awq_scale(groups, mean, awq)
    return clock.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--languages", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or _core.build_info()["cuda"] == "none":
        sys.exit(
            "This needs a GPU, and mlcalib built with MLCALIB_CUDA=ON: see docs/design/cuda.md."
        )
    print(
        f"{torch.cuda.get_device_name()}: one block of Llama-3.1-8B's shape, {arguments.sequences} "
        f"sequences of {LENGTH} tokens, {arguments.languages} languages; × {BLOCKS}; peak memory"
    )
    with torch.inference_mode():
        rows = measure(arguments.sequences, arguments.languages)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
