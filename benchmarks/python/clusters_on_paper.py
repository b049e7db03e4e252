"""What large models take on 1, 8 and 64 GPUs, by arithmetic; nothing runs.

    python benchmarks/python/clusters_on_paper.py

Bytes of statistics are those that mlcalib plans with; seconds divide operations and bytes by what
an H100 and its links do in practice. Ten languages of 50 sequences of 2,048 tokens, quantized
propagation, GPTQ.
"""

from dataclasses import dataclass

import torch

from mlcalib.quantization.dealing import dealt
from mlcalib.quantization.shares import parts_of
from mlcalib.statistics import statistic_bytes
from mlcalib.statistics.pairwise import leaf_sequences, nodes_of

GPU = torch.device("cuda")
LANGUAGES, SEQUENCES, SEQ_LEN = 10, 50, 2048
FORWARD, GRAM, SOLVE = 400e12, 200e12, 20e12  # operations a second, of which each does so many
LINK = {1: 1.0, 8: 300e9, 64: 40e9}  # bytes a second of a GPU, in its node and beyond


@dataclass(frozen=True)
class Model:
    """A model by its largest block.

    Attributes:
        name: of the model.
        blocks: how many.
        hidden: width.
        inputs: (channels, rows of all linears that read them, how many such inputs, the share of
            tokens that reaches each).
    """

    name: str
    blocks: int
    hidden: int
    inputs: tuple[tuple[int, int, int, float], ...]


MODELS = (
    Model(
        "8B",
        32,
        4096,
        ((4096, 6144, 1, 1), (4096, 4096, 1, 1), (4096, 28672, 1, 1), (14336, 4096, 1, 1)),
    ),
    Model(
        "70B",
        80,
        8192,
        ((8192, 10240, 1, 1), (8192, 8192, 1, 1), (8192, 57344, 1, 1), (28672, 8192, 1, 1)),
    ),
    Model(
        "671B, 256 experts",
        61,
        7168,
        (
            (7168, 2112, 1, 1),
            (1536, 24576, 1, 1),
            (512, 32768, 1, 1),
            (16384, 7168, 1, 1),
            (7168, 4096, 257, 9 / 257),
            (2048, 7168, 257, 9 / 257),
        ),
    ),
)


def row(model: Model, ranks: int) -> str:
    """Return a row of the table."""
    tokens = LANGUAGES * SEQUENCES * SEQ_LEN
    counts = dict.fromkeys(map(str, range(LANGUAGES)), SEQUENCES)
    shares = [dealt(counts, SEQ_LEN, rank, ranks) for rank in range(ranks)]
    own = max(sum(map(len, share.values())) for share in shares) * SEQ_LEN
    longest = max(len(part) for share in shares for part in share.values()) * SEQ_LEN
    size = {c: statistic_bytes("gram", c, GPU) for c, _, _, _ in model.inputs}
    others = sum(size[c] for c, _, count, _ in model.inputs if count == 1)
    routed = [(c, count, share) for c, _, count, share in model.inputs if count > 1]
    experts = sum(count * size[c] for c, count, _ in routed)
    one = max((size[c] for c, _, _ in routed), default=0)
    number = max((count for _, count, _ in routed), default=1)
    part = -(-number // ranks) / number
    read = 2 * sum(c * count * share for c, count, share in routed)  # bytes of a token
    of_leaf = leaf_sequences(SEQ_LEN)
    running = (-(-SEQUENCES // of_leaf)).bit_length() - 1
    nodes = max(  # of texts, until they are put together, beyond one for each
        sum(max(nodes_of(range(at.start // of_leaf, -(-at.stop // of_leaf))) - 1, 0) for at in each)
        for each in (share.values() for share in shares)
    )
    weights = sum(channels * rows * count for channels, rows, count, _ in model.inputs)
    mixture = others + part * experts + one
    fixed = 2 * 2 * weights + 2 * weights + own * model.hidden * 2 + mixture
    # One process sums all experts at once, unless each language has diagonals alone.
    apart = (running + 2) * one + longest * read
    sums = running + (1 if ranks > 1 else 0)
    parts = nodes if ranks > 1 else 0
    at_once = apart if ranks > 1 else running * experts
    whole = (LANGUAGES + sums + parts) * others + LANGUAGES * part * experts + at_once
    of_one = (1 + sums + -(-parts // LANGUAGES)) * others
    kept = [whole, of_one + part * experts + at_once, *([of_one + apart] if routed else [])]
    memory = [f"{(fixed + each) / 1e9:,.0f}" for each in kept] + [""] * (3 - len(kept))
    active = sum(channels * rows * n * share for channels, rows, n, share in model.inputs)
    forward = 2 * 2 * own * active / FORWARD
    gram = own * sum(c * c * n * share for c, _, n, share in model.inputs) / GRAM
    shapes, owners = [], {}
    for c, rows, count, _ in model.inputs:
        for index in range(count):
            if count > 1:
                owners[len(shapes)] = index * ranks // count
            shapes.append((rows, c))
    load = [0.0] * ranks
    for each in parts_of(shapes, ranks, owners=owners):
        channels = shapes[each.task][1]
        load[each.owner] += 2 * (channels**3 / 3 + (each.last - each.first) * channels**2)
    solve = max(load) / SOLVE
    sent = (2 * LANGUAGES * others + own * read + weights) * (ranks - 1) / ranks
    seconds = [model.blocks * each for each in (forward, gram, solve, sent / LINK[ranks])]
    return (
        f"| {model.name} | {ranks} | {(others + experts) / 1e9:.1f} | {' | '.join(memory)} | "
        f"{sent / 1e9:.1f} | {' | '.join(f'{each:,.0f}' for each in seconds)} "
        f"| {sum(seconds) / 60:.1f} | {tokens / 1e6:.1f} |"
    )


def main() -> None:
    """Print the table."""
    columns = ["model", "GPUs", "a language, GB", "memory, GB", "in turns, GB"]
    columns += ["diagonals, GB", "sent a block, GB"]
    columns += ["forward, s", "Grams, s", "solving, s", "sending, s", "minutes", "Mtokens"]
    print(f"| {' | '.join(columns)} |\n| --- |{' --: |' * (len(columns) - 1)}")
    for model in MODELS:
        for ranks in (1, 8, 64):
            print(row(model, ranks))


if __name__ == "__main__":
    main()
