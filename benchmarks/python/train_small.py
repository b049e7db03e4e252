"""Trains a small model of ten languages from nothing, to measure quantizers on a second model.

    python benchmarks/python/train_small.py TEXT OUT [--steps 1000]

Qwen3's architecture: 6 blocks of 256 channels, 4 heads of 64 with 2 of keys and values, gated MLPs
of 768, so that groups of 128 divide every linear. The tokenizer is a byte-level BPE of 4,096 tokens
trained on the same text. Each sequence is of one language; all languages have the same share. A
thousand steps are 4.1 million tokens, and take about an hour on one core.

TEXT is a folder with LANG/calib.txt for the ten languages, such as ../shared/data/text. OUT becomes
a folder with safetensors, as any other model has. LANG/eval.txt is not read.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mlcalib.languages import language_set

VOCABULARY, SEQ_LEN, BATCH, WARM_UP = 4_096, 256, 16, 100
END = "<|endoftext|>"


def make_tokenizer(files: list[Path]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(file) for file in files], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def make_model() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def batches(tokens: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Sequences of languages drawn alike, each from a place drawn alike: [BATCH, SEQ_LEN]."""
    drawn = torch.randint(len(tokens), (BATCH,), generator=generator).tolist()
    sequences = []
    for language in drawn:
        last = len(tokens[language]) - SEQ_LEN
        begin = int(torch.randint(last + 1, (), generator=generator))
        sequences.append(tokens[language][begin : begin + SEQ_LEN])
    return torch.stack(sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    files = [arguments.text / code / "calib.txt" for code in language_set("multi10").weights]
    tokenizer = make_tokenizer(files)
    tokens = [
        torch.tensor(tokenizer(file.read_text(encoding="utf-8"), verbose=False)["input_ids"])
        for file in files
    ]
    print(f"{sum(map(len, tokens)):,} tokens of text", flush=True)
    model = make_model()
    decayed = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95))

    def share(step: int) -> float:
        warm = min(1.0, (step + 1) / WARM_UP)
        return warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / arguments.steps)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    start, losses = time.monotonic(), []
    for step in range(arguments.steps):
        ids = batches(tokens, generator)
        logits = model(ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"{step + 1}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    model.eval().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
