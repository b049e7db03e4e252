"""Experts of which the calibration text shows too little: rounded, or shrunk towards all experts.

    python benchmarks/python/rare_experts.py [--seeds 5] [--out FILE]

Quantizes small random Qwen3-MoE models with 128 experts, whose routers send each of four languages
mostly to experts of its own, by gptq at 4 bits, and compares what can be done for experts with few
tokens. Losses are those of held-out text, summed over experts; all numbers are ratios to solving
each expert on its own Gram alone (without tokens: rounding), with 95 % intervals over seeds.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy.stats import t as student
from torch import Tensor, nn

import mlcalib
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.models.loading import find_smollm2, load_tokenizer
from mlcalib.quantization import rare_experts, variant
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.job import BlockView, Observation, References, Text
from mlcalib.quantization.open_source import live_source
from mlcalib.quantization.prefixes import Mixture
from mlcalib.statistics import StatisticSet, losses

EXPERTS, CHOSEN, HIDDEN, INNER = 128, 8, 64, 32
LANGUAGES, WORDS = ("en", "fr", "sw", "zh"), 64
CALIBRATIONS = {
    "four languages": {"en": 2048, "fr": 512, "sw": 128, "zh": 128},
    "English": {"en": 2816},
}
HELD_OUT = dict.fromkeys(LANGUAGES, 1024)
Shrink = Callable[[Adapter, nn.Module, Mapping[str, StatisticSet], Mixture], dict[str, float]]


@torch.no_grad()
def make_model(seed: int) -> Any:
    """Return a model whose languages share most of their directions, but few of their experts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config = transformers.Qwen3MoeConfig(
        vocab_size=WORDS * len(LANGUAGES),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=INNER,
        norm_topk_prob=True,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        scale = 0.3 if "norm" in name else weight.shape[-1] ** -0.5
        weight.copy_(centre + scale * normal(*weight.shape))
    # Channels of unequal size, as in trained models.
    spectrum = torch.arange(1, HIDDEN + 1) ** -0.75
    spectrum *= math.sqrt(HIDDEN) / spectrum.norm()
    common = torch.linalg.qr(normal(HIDDEN, HIDDEN))[0]
    centres = math.sqrt(HIDDEN) * nn.functional.normalize(normal(len(LANGUAGES), HIDDEN), dim=1)
    words = []
    for centre in centres:
        basis = torch.linalg.qr(common + 0.5 * HIDDEN**-0.5 * normal(HIDDEN, HIDDEN))[0]
        words.append(0.7 * centre + normal(WORDS, HIDDEN) * spectrum @ basis.T)
    model.model.embed_tokens.weight.copy_(torch.cat(words))
    layer = model.model.layers[0]
    own = centres[torch.arange(EXPERTS) % len(LANGUAGES)]
    layer.mlp.gate.weight.add_(3 * own / HIDDEN).div_(layer.post_attention_layernorm.weight)
    return model


def make_text(seed: int, tokens: Mapping[str, int]) -> mlcalib.CalibrationSet:
    """Return words drawn by Zipf's law, of each language its own."""
    generator = torch.Generator().manual_seed(seed)
    zipf = 1 / torch.arange(1, WORDS + 1)
    corpus = {}
    for index, code in enumerate(LANGUAGES):
        if count := tokens.get(code):
            drawn = torch.multinomial(zipf, count, replacement=True, generator=generator)
            corpus[code] = [(index * WORDS + drawn).tolist()]
    return mlcalib.calibration(None, corpus=corpus, seq_len=128)


class Grams(Observation):
    """Keeps the Grams of the inputs of experts: linear → language → statistics."""

    kinds = ("gram",)

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, StatisticSet]] = {}

    def see(self, block: BlockView) -> None:
        for key, members in block.adapter.linears_of(block.module).items():
            for member in members:
                if block.adapter.expert_of(member) is not None:
                    by_text = block.measured.get(key, {}).items()
                    self.found[f"{block.name}.{member}"] = {
                        code: each for (_, code), each in by_text
                    }

    def measure(self, block: BlockView, measured: References[Text]) -> None:
        """All languages are held at once."""


def own_alone(*_: Any) -> dict[str, float]:
    return {}


def rule(pseudo_tokens: float, levelled: float) -> Shrink:
    """Return the rule with other constants."""

    def shrink(*arguments: Any) -> dict[str, float]:
        kept = rare_experts.PSEUDO_TOKENS, rare_experts.LEVELLED
        rare_experts.PSEUDO_TOKENS, rare_experts.LEVELLED = pseudo_tokens, levelled
        try:
            return rare_experts.shrink_experts(*arguments)
        finally:
            rare_experts.PSEUDO_TOKENS, rare_experts.LEVELLED = kept

    return shrink


VARIANTS: dict[str, Shrink] = {
    "its own Gram": own_alone,
    "the mean Gram, 1/16": rule(1 / 16, 0.0),
    "half of each, 1/16": rule(1 / 16, 0.5),
    "level, 1/16": rule(1 / 16, 1.0),
    "level, 1/64": rule(1 / 64, 1.0),
}


@contextmanager
def shrinking(shrink: Shrink) -> Iterator[None]:
    kept, variant.shrink_experts = variant.shrink_experts, shrink
    try:
        yield
    finally:
        variant.shrink_experts = kept


@torch.no_grad()
def divergence(model: Any, quantized: Any, text: mlcalib.CalibrationSet) -> dict[str, float]:
    """Return language → mean KL divergence of a token's prediction, in nats."""
    found = {}
    for code in text.ids:
        total, count = 0.0, 0
        for ids, _ in text.sequences(code):
            true, other = (each(ids).logits.log_softmax(-1) for each in (model, quantized))
            total += (true.exp() * (true - other)).sum().item()
            count += ids.numel()
        found[code] = total / count
    return found


def measure(seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return calibration → variant → what was measured."""
    model, held = make_model(seed), make_text(1000 + seed, HELD_OUT)
    grams, source = Grams(), live_source(model)
    run_pass(source, [grams], held, propagate="float", stopwatch=Stopwatch(), description=None)
    weights = {name: each.weight for name, each in source.adapter.named_linears(source.model)}
    tokenizer = load_tokenizer(str(find_smollm2()))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, tokens in CALIBRATIONS.items():
        text = make_text(seed, tokens)
        for way, shrink in VARIANTS.items():
            with shrinking(shrink):
                quantized = mlcalib.quantize(
                    model, text, tokenizer=tokenizer, group_size=32, propagate="float",
                    format="dense", ignore=["self_attn"], progress=False,
                )  # fmt: skip
            result = divergence(model, quantized.model, held)
            result = {f"KL {code}": each for code, each in result.items()}
            result["KL"] = sum(result.values())
            for linear, by_language in grams.found.items():
                expert, _, kind = linear.rpartition(".")
                seen = sum(quantized.expert_tokens[expert].values())
                amount = "none" if not seen else "few" if seen < HIDDEN else "many"
                result[f"experts {amount}"] = result.get(f"experts {amount}", 0) + (
                    kind == "down_proj"
                )
                change = weights[linear].float() - quantized.linears[linear].dequantize()
                for code, loss in zip(
                    by_language, losses(change, by_language.values()), strict=True
                ):
                    part = "last" if kind == "down_proj" else "first"
                    for key in (f"{part} {amount}", f"loss {code}"):
                        result[key] = result.get(key, 0.0) + loss
            found.setdefault(name, {})[way] = result
    return found


def interval(ratios: list[float]) -> str:
    """Return the geometric mean of ratios and its 95 % interval."""
    logs = [math.log(each) for each in ratios]
    mean = statistics.mean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.3f}"
    half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = math.exp(mean - half), math.exp(mean + half)
    return f"{math.exp(mean):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the numbers, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(arguments.seeds):
        found.append(measure(seed))
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name in CALIBRATIONS:
        base = [each[name]["its own Gram"] for each in found]
        counts = {
            key: statistics.mean(each[key] for each in base) for key in base[0] if "exp" in key
        }
        print(f"\ncalibrated on {name}: {counts}")
        for way in VARIANTS:
            print(way)
            for key in base[0]:
                if "exp" not in key:
                    ratios = [
                        each[name][way][key] / own[key]
                        for each, own in zip(found, base, strict=True)
                    ]
                    print(f"  {key:12s} {interval(ratios)}")


if __name__ == "__main__":
    main()
