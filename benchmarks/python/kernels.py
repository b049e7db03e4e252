"""Kernels against naive torch, in one run: Gram update, GPTQ solve, AWQ scale search.

    python benchmarks/python/kernels.py [--kernels gram gptq two_sided awq] [--threads 2]

Prints kernel, size, instruction set, threads, milliseconds of ours and of torch, the ratio, and our
share of the machine's peak (measured here as the best large fp32 matrix product). Ours and torch
alternate, so that a busy machine slows both; medians. MLCALIB_ISA and MKL_ENABLE_INSTRUCTIONS hold
both to one instruction set.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mlcalib import _core

SIZES = ((2048, 576), (2048, 1536), (2048, 4096), (2048, 14336), (256, 1536), (16384, 1536))
"""Tokens and channels of the Gram cases."""


@dataclass(frozen=True)
class Result:
    kernel: str
    size: str
    isa: str
    threads: int
    ours_ms: float
    torch_ms: float
    ratio: float
    peak_share: float
    load: float


@dataclass(frozen=True)
class Case:
    """What is timed; `operations` are those of the full product, so that both count alike."""

    kernel: str
    size: str
    operations: float
    ours: Callable[[], object]
    naive: Callable[[], object]


def activations(tokens: int, channels: int) -> Tensor:
    """Correlated, a few channels far larger, as those of a language model."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, channels, generator=generator)
    x += torch.randn(tokens, 16, generator=generator) @ torch.randn(16, channels) / 4
    return x * torch.randn(channels, generator=generator).exp()


def gram_of(channels: int) -> Tensor:
    x = activations(2 * channels, channels)
    return x.T @ x


def gram_cases(largest: int) -> Iterator[Case]:
    for tokens, channels in (size for size in SIZES if size[1] <= largest):
        for dtype in (torch.float32, torch.bfloat16):
            x = activations(tokens, channels).to(dtype)
            statistic = _core.make_statistic("gram", channels)
            gram = torch.zeros(channels, channels)

            def naive(x: Tensor = x, gram: Tensor = gram) -> None:
                rows = x.float()
                gram.addmm_(rows.T, rows)

            def ours(x: Tensor = x, statistic: _core.Statistic = statistic) -> None:
                statistic.update(x)

            size = f"{tokens}x{channels} {str(dtype).removeprefix('torch.')}"
            yield Case("gram", size, 2.0 * tokens * channels**2, ours, naive)


def torch_gptq(weight: Tensor, gram: Tensor, group_size: int) -> Tensor:
    """The reference algorithm: column loop in blocks of 128, three factorisations."""
    columns = weight.shape[1]
    order = torch.argsort(gram.diagonal(), descending=True)
    low = weight.unflatten(1, (-1, group_size)).amin(-1).clamp(max=0)
    high = weight.unflatten(1, (-1, group_size)).amax(-1).clamp(min=0)
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    held, hessian = weight[:, order].clone(), gram[order][:, order].clone()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    inverse = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.zeros_like(held)
    for first in range(0, columns, 128):
        last = min(first + 128, columns)
        block, part = held[:, first:last].clone(), inverse[first:last, first:last]
        errors = torch.zeros_like(block)
        for i in range(last - first):
            group = order[first + i] // group_size
            s, z = scale[:, group], zero[:, group]
            codes[:, first + i] = (torch.round(block[:, i] / s) + z).clamp(0, 15)
            errors[:, i] = (block[:, i] - s * (codes[:, first + i] - z)) / part[i, i]
            block[:, i:] -= errors[:, i, None] * part[i, i:]
        held[:, last:] -= errors @ inverse[first:last, last:]
    return codes


def gptq_cases(largest: int) -> Iterator[Case]:
    for rows, columns in ((576, 1536), (1536, 576), (4096, 4096), (4096, 14336)):
        if columns > largest:
            continue
        group_size = 64 if columns % 128 else 128
        weight, gram = torch.randn(rows, columns), gram_of(columns)
        options = _core.GptqOptions(_core.GridSpec(4, group_size))

        def ours(
            weight: Tensor = weight, gram: Tensor = gram, options: _core.GptqOptions = options
        ) -> None:
            _core.gptq(weight, gram, options)

        def naive(weight: Tensor = weight, gram: Tensor = gram, group: int = group_size) -> None:
            torch_gptq(weight, gram, group)

        operations = columns**3 / 3 + rows * columns**2
        yield Case("gptq", f"{rows}x{columns} g{group_size}", operations, ours, naive)


def two_sided_cases(largest: int) -> Iterator[Case]:
    """Two-sided GPTQ, against one-sided: ``torch ms`` and ``ratio`` are of that."""
    for rows, columns in ((576, 576), (1536, 576), (576, 1536), (4096, 4096)):
        if columns > largest:
            continue
        weight, gram, output = torch.randn(rows, columns), gram_of(columns), gram_of(rows)
        options = _core.GptqOptions(_core.GridSpec(4, 64 if columns % 128 else 128))

        def ours(
            weight: Tensor = weight,
            gram: Tensor = gram,
            output: Tensor = output,
            options: _core.GptqOptions = options,
        ) -> None:
            _core.gptq([weight], gram, [output], options)

        def one_sided(
            weight: Tensor = weight, gram: Tensor = gram, options: _core.GptqOptions = options
        ) -> None:
            _core.gptq(weight, gram, options)

        operations = columns**3 / 3 + rows * columns**2 + rows**3 / 3 + rows**2 * columns
        yield Case("two_sided", f"{rows}x{columns}", operations, ours, one_sided)


def torch_awq(weight: Tensor, x: Tensor, points: int, group_size: int) -> int:
    """The grid search of the authors: a forward for each scale."""
    wanted, mean = x @ weight.T, x.abs().mean(0)
    losses = []
    for point in range(points):
        scale = mean.pow(point / points).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        groups = (weight * scale).unflatten(1, (-1, group_size))
        low = groups.amin(-1, keepdim=True).clamp(max=0)
        step = (groups.amax(-1, keepdim=True).clamp(min=0) - low) / 15
        zero = torch.round(-low / step)
        codes = (torch.round(groups / step) + zero).clamp(0, 15)
        rounded = ((codes - zero) * step).flatten(1) / scale
        losses.append(float((x @ rounded.T - wanted).square().mean()))
    return losses.index(min(losses))


def awq_cases(largest: int) -> Iterator[Case]:
    points = 20
    for size, tokens in ((576, 4096), (4096, 4096)):
        if size > largest:
            continue
        group_size = 64 if size % 128 else 128
        weight, x = torch.randn(size, size), activations(tokens, size)
        gram, mean = x.T @ x, x.abs().mean(0)
        options = _core.AwqOptions(_core.GridSpec(4, group_size), points=points)

        def ours(
            weight: Tensor = weight,
            gram: Tensor = gram,
            mean: Tensor = mean,
            options: _core.AwqOptions = options,
        ) -> None:
            _core.awq_scale([_core.LinearGroup([weight], gram)], mean, options)

        def naive(weight: Tensor = weight, x: Tensor = x, group: int = group_size) -> None:
            torch_awq(weight, x, points, group)

        operations = 2.0 * points * tokens * size**2
        yield Case("awq", f"{size}x{size}, {tokens} tokens", operations, ours, naive)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: Case, repeats: int, peak: float) -> Result:
    case.ours()  # the first call allocates
    pairs = [(seconds(case.ours), seconds(case.naive)) for _ in range(repeats)]
    ours, naive = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Result(
        case.kernel,
        case.size,
        _core.isa(),
        torch.get_num_threads(),
        1e3 * ours,
        1e3 * naive,
        naive / ours,
        case.operations / ours / peak,
        os.getloadavg()[0],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = {"gram": gram_cases, "gptq": gptq_cases, "awq": awq_cases}
    kinds |= {"two_sided": two_sided_cases}
    parser.add_argument("--kernels", nargs="+", default=list(kinds), choices=list(kinds))
    parser.add_argument("--largest", type=int, default=14336, help="channels of the largest case")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    square = torch.randn(4096, 4096)
    peak = 2 * 4096**3 / min(seconds(lambda: square @ square) for _ in range(5))
    print(f"peak {peak / 1e9:.0f} GFLOP/s (fp32 matrix product), {arguments.threads} threads\n")
    print("| kernel | size | ISA | threads | ours ms | torch ms | ratio | of peak | load |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    results = []
    for kind in arguments.kernels:
        for case in kinds[kind](arguments.largest):
            r = measure(case, arguments.repeats, peak)
            results.append(r)
            print(
                f"| {r.kernel} | {r.size} | {r.isa} | {r.threads} | {r.ours_ms:.1f} | "
                f"{r.torch_ms:.1f} | {r.ratio:.2f} | {r.peak_share:.2f} | {r.load:.1f} |",
                flush=True,
            )
    if arguments.json:
        lines = [json.dumps(asdict(result)) for result in results]
        arguments.json.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
