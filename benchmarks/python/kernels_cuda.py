"""CUDA kernels against naive torch on the same GPU: Gram update, GPTQ solve, AWQ scale search.

    python benchmarks/python/kernels_cuda.py [--kernels gram gptq awq] [--repeats 11] [--json OUT]

Prints kernel, size, milliseconds of ours and of torch, the ratio, and our share of the GPU's peak
(measured here as the best large matrix product of the input's type; operations are those of the
full product). Ours and torch alternate; medians. Needs a GPU, and mlcalib built with MLCALIB_CUDA.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from kernels import activations, torch_awq, torch_gptq
from torch import Tensor

from mlcalib import _core

POINTS = 20
SIZES = ((2048, 576), (2048, 1536), (2048, 4096), (2048, 14336), (16384, 4096), (16384, 14336))
"""Tokens and channels of the Gram cases."""


@dataclass(frozen=True)
class Case:
    kernel: str
    size: str
    operations: float
    dtype: torch.dtype
    ours: Callable[[], object]
    naive: Callable[[], object]


@dataclass(frozen=True)
class Result:
    kernel: str
    size: str
    gpu: str
    ours_ms: float
    torch_ms: float
    ratio: float
    peak_share: float


def gram_cases() -> Iterator[Case]:
    for tokens, channels in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            x = activations(tokens, channels).to("cuda", dtype)
            statistic = _core.make_statistic("gram", channels)
            gram = torch.zeros(channels, channels, device="cuda")

            def naive(x: Tensor = x, gram: Tensor = gram) -> None:
                rows = x.float()
                gram.addmm_(rows.T, rows)

            def ours(x: Tensor = x, statistic: _core.Statistic = statistic) -> None:
                statistic.update(x)

            size = f"{tokens}x{channels} {str(dtype).removeprefix('torch.')}"
            yield Case("gram", size, 2.0 * tokens * channels**2, dtype, ours, naive)


def gram_of(channels: int) -> Tensor:
    x = activations(2 * channels, channels).cuda()
    return x.T @ x


def gptq_cases() -> Iterator[Case]:
    for rows, columns in ((576, 1536), (1536, 576), (4096, 4096), (4096, 14336)):
        group_size = 64 if columns % 128 else 128
        weight, gram = torch.randn(rows, columns, device="cuda"), gram_of(columns)
        options = _core.GptqOptions(_core.GridSpec(4, group_size))

        def ours(
            weight: Tensor = weight, gram: Tensor = gram, options: _core.GptqOptions = options
        ) -> None:
            _core.gptq(weight, gram, options)

        def naive(weight: Tensor = weight, gram: Tensor = gram, group: int = group_size) -> None:
            torch_gptq(weight, gram, group)

        operations = columns**3 / 3 + rows * columns**2
        size = f"{rows}x{columns} g{group_size}"
        yield Case("gptq", size, operations, torch.float32, ours, naive)


def awq_cases() -> Iterator[Case]:
    for size, tokens in ((576, 4096), (4096, 4096), (4096, 65536)):
        group_size = 64 if size % 128 else 128
        weight = torch.randn(size, size, device="cuda")
        x = activations(tokens, size).cuda()
        gram, mean = x.T @ x, x.abs().mean(0)
        options = _core.AwqOptions(_core.GridSpec(4, group_size), points=POINTS)

        def ours(
            weight: Tensor = weight,
            gram: Tensor = gram,
            mean: Tensor = mean,
            options: _core.AwqOptions = options,
        ) -> None:
            _core.awq_scale([_core.LinearGroup([weight], gram)], mean, options)

        def naive(weight: Tensor = weight, x: Tensor = x, group: int = group_size) -> None:
            torch_awq(weight, x, POINTS, group)

        operations = 2.0 * POINTS * tokens * size**2
        label = f"{size}x{size}, {tokens} tokens"
        yield Case("awq", label, operations, torch.float32, ours, naive)


def seconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_of(dtype: torch.dtype) -> float:
    square = torch.randn(8192, 8192, device="cuda").to(dtype)
    return 2 * 8192**3 / min(seconds(lambda: square @ square) for _ in range(10))


def measure(case: Case, repeats: int, peak: float) -> Result:
    for _ in range(2):  # allocations, and cuBLAS's choice of a kernel
        case.ours()
        case.naive()
    pairs = [(seconds(case.ours), seconds(case.naive)) for _ in range(repeats)]
    ours, naive = (statistics.median(times) for times in zip(*pairs, strict=True))
    share = case.operations / ours / peak
    gpu = torch.cuda.get_device_name()
    return Result(case.kernel, case.size, gpu, 1e3 * ours, 1e3 * naive, naive / ours, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = {"gram": gram_cases, "gptq": gptq_cases, "awq": awq_cases}
    parser.add_argument("--kernels", nargs="+", default=list(kinds), choices=list(kinds))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or _core.build_info()["cuda"] == "none":
        sys.exit(
            "This needs a GPU, and mlcalib built with MLCALIB_CUDA=ON: see docs/design/cuda.md."
        )
    peaks = {dtype: peak_of(dtype) for dtype in (torch.float32, torch.bfloat16)}
    rates = ", ".join(f"{peak / 1e12:.0f} TFLOP/s {dtype}" for dtype, peak in peaks.items())
    print(
        f"{torch.cuda.get_device_name()}, mlcalib for CUDA {_core.build_info()['cuda']}: {rates}\n"
    )
    print("| kernel | size | ours ms | torch ms | ratio | of peak |")
    print("|---|---|--:|--:|--:|--:|")
    results = []
    for kind in arguments.kernels:
        for case in kinds[kind]():
            r = measure(case, arguments.repeats, peaks[case.dtype])
            results.append(r)
            print(
                f"| {r.kernel} | {r.size} | {r.ours_ms:.3f} | {r.torch_ms:.3f} | {r.ratio:.2f} | "
                f"{r.peak_share:.2f} |",
                flush=True,
            )
    if arguments.json:
        lines = [json.dumps(asdict(result)) for result in results]
        arguments.json.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
