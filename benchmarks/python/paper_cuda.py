"""Seconds and bytes of quantizing Llama-3.1-8B on a GPU, by arithmetic from measured rates.

    python benchmarks/python/paper_cuda.py [--languages 10] [--sequences 128]

4 bits, group 128, sequences of 2,048 tokens, a Gram for each language and input. Rates are those of
one H200 (docs/results/cuda.md); an H100 has its arithmetic, and 3.35 TB/s of memory where it has
4.8. Each function below is one row of the table "On paper" in docs/results/cuda.md. Needs no GPU.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

LENGTH, BLOCKS = 2048, 32
HIDDEN, INNER, KEYS = 4096, 14336, 1024
LINEARS = (  # rows, columns
    (HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, HIDDEN),
    (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER),
)  # fmt: skip
INPUTS = (HIDDEN, HIDDEN, HIDDEN, INNER)
WEIGHTS = sum(rows * columns for rows, columns in LINEARS)
BLOCK_ROWS = 1024
"""Rows of one product of a Gram, and of the blocks that it is kept in."""

FORWARD = 0.228 / (128 * LENGTH)
"""Seconds of a block's forward for a token, measured."""
GRAM = {HIDDEN: 585e12, INNER: 691e12}
"""Operations a second of products of 4,096 tokens by channels, measured."""
TERMS = 600e12
"""Likewise, of bfloat16 products in general: between the two above."""
MIX, GPTQ, AWQ = 0.080, 0.117, 0.241
"""Seconds, measured: of ten languages; four solves without the start of cuSOLVER; four searches."""
FEEDBACK_SAVED = 0.003
"""Seconds that feedback in two levels saves in `down`: large products at 60 TFLOP/s, not 46."""
MEMORY = {"H200": 4.0e12, "H100": 4.0e12 * 3.35 / 4.8}
"""Bytes a second that a copy reaches; of the H200's 4.8 TB/s five sixths."""
PCIE, PAGEABLE, DISK = 50e9, 10e9, 2e9
"""Bytes a second: pinned memory over PCIe 5, memory that is not pinned, an NVMe disk."""


@dataclass(frozen=True)
class Run:
    """What is calibrated, and where."""

    languages: int
    sequences: int
    gpu: str

    @property
    def tokens(self) -> int:
        return self.sequences * LENGTH

    def moved(self, size: float) -> float:
        """Return seconds to read or write so many bytes of the GPU's memory."""
        return size / MEMORY[self.gpu]

    def forward(self) -> float:
        return FORWARD * self.tokens

    def grams(self) -> float:
        """T n² (1 + 1024/n) operations for each input, and three reads and two writes of it.

        Two copies join sequences; NaN and Inf are counted.
        """
        products = sum(self.tokens * triangle(n) / GRAM[n] for n in INPUTS)
        return products + self.moved(5 * 2 * self.tokens * sum(INPUTS))

    def mix(self) -> float:
        """Measured, and bound by memory."""
        return MIX * self.languages / 10 * MEMORY["H200"] / MEMORY[self.gpu]

    def gptq(self) -> float:
        return GPTQ - FEEDBACK_SAVED

    def losses(self) -> float:
        """Four products of bfloat16 terms for each DᵀD; a triangle for each language and DᵀD."""
        products = sum(4 * rows * triangle(n) / TERMS for rows, n in LINEARS)
        triangles = sum(4 * n * n / 2 for _, n in LINEARS) * (self.languages + 1)
        split = WEIGHTS * (4 + 4 + 2 + 4 + 2 + 4 + 2)  # the three steps that make two terms of it
        return products + self.moved(triangles + split)

    def deviation(self) -> float:
        """Two products of 2 T n² operations and a forward of the float model; the terms' passes."""
        products = sum(2 * 2 * self.tokens * n * n / GRAM[n] for n in INPUTS)
        passes = (
            self.tokens * sum(INPUTS) * 34
        )  # bytes: two float32 copies, their difference, terms
        return products + self.moved(passes) + self.forward()

    def gram_bytes(self) -> float:
        """Those of one language, packed."""
        return sum(packed(n) for n in INPUTS)

    def hidden_bytes(self) -> int:
        return 2 * self.tokens * HIDDEN


def triangle(channels: int) -> float:
    """Return operations for each row of x of the upper triangle of xᵀx, by blocks of rows."""
    return channels**2 * (1 + BLOCK_ROWS / channels)


def packed(channels: int) -> float:
    """Return the bytes of a Gram's block rows: (1 + 1024/n) / 2 of the square."""
    return 4 * triangle(channels) / 2


def phases(run: Run) -> Mapping[str, tuple[float, float]]:
    """Return phase → seconds of a block, bytes on the GPU."""
    hidden, gram = run.hidden_bytes(), run.gram_bytes()
    largest = 4 * INNER * INNER
    solve = (
        4 * largest + 5 * 4 * HIDDEN * INNER
    )  # Gram, its two orders, the factor; five of weights
    return {
        "forward": (run.forward(), hidden + 2 * WEIGHTS),
        "Grams of all languages": (run.grams(), run.languages * gram),
        "mix": (run.mix(), gram),
        "GPTQ": (run.gptq(), solve),
        "losses in all languages": (run.losses(), packed(INNER) + 12 * HIDDEN * INNER),
    }


def fallbacks(run: Run) -> Mapping[str, tuple[float, float]]:
    """Return fallback → seconds that it adds to a block, bytes that it saves."""
    hidden, grams = run.hidden_bytes(), run.languages * run.gram_bytes()
    return {
        "hidden states in pinned memory": (2 * hidden / PCIE, hidden),
        "hidden states in memory that is not pinned": (2 * hidden / PAGEABLE, hidden),
        "hidden states on disk": (2 * hidden / DISK, hidden),
        "half of the languages' Grams at a time": (run.forward(), grams / 2),
        "a fifth of them at a time": (run.forward(), grams * 4 / 5),
        "finished Grams in pinned memory": (2 * grams / PCIE, grams - run.gram_bytes()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--languages", type=int, default=10)
    parser.add_argument("--sequences", type=int, default=128)
    arguments = parser.parse_args()
    runs = [Run(arguments.languages, arguments.sequences, gpu) for gpu in ("H200", "H100")]
    print("| phase | H200, a block | × 32 | H100, a block | × 32 | GB on the GPU |")
    print("|---|--:|--:|--:|--:|--:|")
    both = [phases(run) for run in runs]
    for name, (_, size) in both[0].items():
        seconds = [each[name][0] for each in both]
        print_row(name, seconds, f"{size / 1e9:.1f}")
    print_row("together", [sum(s for s, _ in each.values()) for each in both], "")
    print_row("instead of GPTQ: AWQ", [AWQ, AWQ], "")
    print_row("with correction, besides", [run.deviation() for run in runs], "")
    print("\n| fallback | s, a block | × 32 | GB saved |\n|---|--:|--:|--:|")
    for name, (added, saved) in fallbacks(runs[0]).items():
        print(f"| {name} | {added:.3f} | {BLOCKS * added:.1f} | {saved / 1e9:.1f} |")


def print_row(name: str, seconds: list[float], last: str) -> None:
    cells = " | ".join(f"{each:.3f} | {BLOCKS * each:.1f}" for each in seconds)
    print(f"| {name} | {cells} | {last} |")


if __name__ == "__main__":
    main()
