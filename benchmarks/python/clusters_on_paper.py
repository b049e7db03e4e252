"""What large models take on 1, 8 and 64 GPUs, by arithmetic; nothing runs.

    python benchmarks/python/clusters_on_paper.py

Memory and what is sent are what mlcalib plans, for models without weights on GPUs that are not
here; seconds divide operations and bytes by what an H100 and its links do in practice. Ten
languages of 50 sequences of 2,048 tokens, quantized propagation, GPTQ.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from mlcalib.quantization.dealing import dealt
from mlcalib.quantization.memory import MemoryPlan, plan_memory
from mlcalib.quantization.open_source import live_source
from mlcalib.quantization.shares import parts_of
from mlcalib.quantization.source import Source

GPU = torch.device("cuda")
LANGUAGES, SEQUENCES, SEQ_LEN = 10, 50, 2048
FORWARD, GRAM, SOLVE = 400e12, 200e12, 20e12  # operations a second, of which each does so many
CARDS = {"80 GB": 72e9, "141 GB": 127e9}  # of which nine tenths may be taken
LINK = {1: 1.0, 8: 300e9, 64: 40e9}  # bytes a second of a GPU, in its node and beyond


@dataclass(frozen=True)
class Model:
    """A model by one of its blocks.

    Attributes:
        name: of the model.
        blocks: how many.
        source: one block, without weights.
        inputs: (channels, rows of all linears that read them, the share of tokens that reaches it,
            the rank of several that must have it, as a part of all ranks, or None).
    """

    name: str
    blocks: int
    source: Source

    @property
    def inputs(self) -> list[tuple[int, int, float, float | None]]:
        """See the attributes."""
        adapter = self.source.adapter
        _, block = adapter.named_blocks(self.source.model)[0]
        linears = adapter.linears_of(block)
        experts = [key for key, names in linears.items() if adapter.expert_of(names[0])]
        config = self.source.model.config
        share = 2 * config.num_experts_per_tok / len(experts) if experts else 1.0
        found = []
        for key, names in linears.items():
            weights = [adapter.linear(block, name).weight for name in names]
            rows = sum(weight.shape[0] for weight in weights)
            of_expert = key in experts
            place = experts.index(key) // 2 * 2 / len(experts) if of_expert else None
            found.append((weights[0].shape[1], rows, share if of_expert else 1.0, place))
        return found


def one_block(kind: type[PreTrainedModel], config: Any) -> Source:
    """Return a model of one block, without weights, in bfloat16."""
    with torch.device("meta"):
        return live_source(kind(config).to(torch.bfloat16))


def models() -> list[Model]:
    """Return the models; the largest has a simpler attention than what is published."""
    eight = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    seventy = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=1,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    mixture = Qwen3MoeConfig(
        hidden_size=7168,
        moe_intermediate_size=2048,
        num_experts=256,
        num_experts_per_tok=8,
        num_hidden_layers=1,
        num_attention_heads=128,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=129280,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    return [
        Model("8B", 32, one_block(LlamaForCausalLM, eight)),
        Model("70B", 80, one_block(LlamaForCausalLM, seventy)),
        Model("671B, 256 experts", 61, one_block(Qwen3MoeForCausalLM, mixture)),
    ]


def planned(model: Model, ranks: int, budget: float) -> MemoryPlan:
    """Return what each of several GPUs takes, if so many bytes may be taken."""
    languages = [str(index) for index in range(LANGUAGES)]
    ids = {code: torch.empty(SEQUENCES, SEQ_LEN, device="meta") for code in languages}
    text: Any = SimpleNamespace(ids=ids, seq_len=SEQ_LEN)
    others: Any = SimpleNamespace(size=ranks, local_size=1, gathered=lambda value: [value])
    with patch("mlcalib.quantization.memory.free_memory", lambda _: (0, 0)):
        return plan_memory(
            model.source,
            [GPU],
            text,
            dict.fromkeys(languages, 1),
            ("gram", "range"),
            solving=1,
            divisible=True,
            by_expert=any(place is not None for *_, place in model.inputs),
            budget=int(budget),
            ranks=others,
        )


def told(plan: MemoryPlan) -> str:
    """Return what a plan takes, and what it does without."""
    without = [
        *(["hidden states on the host"] if plan.on_host else []),
        *([f"{len(plan.groups)} turns"] if len(plan.groups) > 1 else []),
        *(["diagonals"] if plan.diagonal else []),
    ]
    if plan.total > plan.budget:
        return f"needs {plan.total / 1e9:,.0f}"
    return ", ".join([f"{plan.total / 1e9:,.0f}", *without])


def row(model: Model, ranks: int) -> str:
    """Return a row of the table."""
    inputs = model.inputs
    tokens = LANGUAGES * SEQUENCES * SEQ_LEN
    counts = dict.fromkeys(map(str, range(LANGUAGES)), SEQUENCES)
    shares = [dealt(counts, SEQ_LEN, rank, ranks) for rank in range(ranks)]
    own = max(sum(map(len, share.values())) for share in shares) * SEQ_LEN
    plan = planned(model, ranks, 1e15)
    active = sum(channels * rows * share for channels, rows, share, _ in inputs)
    forward = 2 * 2 * own * active / FORWARD
    gram = own * sum(c * c * share for c, _, share, _ in inputs) / GRAM
    owners = {
        index: int(place * ranks) for index, (*_, place) in enumerate(inputs) if place is not None
    }
    load = [0.0] * ranks
    for part in parts_of([(rows, c) for c, rows, _, _ in inputs], ranks, owners=owners):
        channels = inputs[part.task][0]
        load[part.owner] += 2 * (channels**3 / 3 + (part.last - part.first) * channels**2)
    solve = max(load) / SOLVE
    sent = plan.traffic
    seconds = [model.blocks * each for each in (forward, gram, solve, sent / LINK[ranks])]
    cards = " | ".join(told(planned(model, ranks, budget)) for budget in CARDS.values())
    return (
        f"| {model.name} | {ranks} | {sum(plan.needs.inputs.values()) / 1e9:.1f} | "
        f"{plan.total / 1e9:,.0f} | {cards} | {sent / 1e9:.1f} | "
        f"{' | '.join(f'{each:,.0f}' for each in seconds)} | {sum(seconds) / 60:.1f} | "
        f"{tokens / 1e6:.1f} |"
    )


def main() -> None:
    """Print the table."""
    columns = ["model", "GPUs", "a language, GB", "all at once, GB"]
    columns += [f"on {name}" for name in CARDS] + ["sent a block, GB"]
    columns += ["forward, s", "Grams, s", "solving, s", "sending, s", "minutes", "Mtokens"]
    print(f"| {' | '.join(columns)} |\n| --- |{' --: |' * (len(columns) - 1)}")
    for model in models():
        for ranks in (1, 8, 64):
            print(row(model, ranks), flush=True)


if __name__ == "__main__":
    main()
