"""The task model against lm-eval's own ``hf``, on every architecture and shape of request."""

import copy
import random

import pytest
import torch
from small_models import tiny_llama, tiny_model

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from mlcalib.evaluation.tasks.model import TaskModel
from mlcalib.evaluation.tasks.prefixes import batches, group

WORDS = ["the", "market", "opens", "before", "sunrise", "soko", "ya", "jua", "市场在日出前"]


def requests(seed=0):
    """Choices that share their context, all but their end, a premise, or nothing."""
    draw = random.Random(seed)

    def text(least, most):
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    found = []
    for _ in range(4):
        premise = text(4, 14)
        found += [("", f"{premise}, right? {word}, {text(2, 5)}") for word in ("Yes", "Also", "No")]
        found += [(f"{text(2, 12)}\nAnswer:", f" {letter}") for letter in "ABCD"]
        found += [(premise, f" {text(1, 5)}") for _ in range(2)]
        found += [(f"{premise} so ", text(1, 3))]
    found += [found[0], ("one", " two"), ("one", " two three")]
    return found


def hf(model, tokenizer, max_length):
    """lm-eval's own; it gives the tokenizer a padding token."""
    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), max_length=max_length)


def scored(model, pairs):
    return model.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True
    )


def equal(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    for (ours_, _), (theirs_, _) in zip(ours, theirs, strict=True):
        assert ours_ == pytest.approx(theirs_, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "cohere", "qwen3_moe"])
@pytest.mark.parametrize("max_length", [256, 60])
def test_loglikelihoods_are_those_of_hf(tokenizer, name, max_length):
    model = tiny_model(name, vocabulary=384)
    pairs = [pair for pair in requests() if pair[0] or max_length == 256]  # others are too long
    ours = TaskModel(model, tokenizer, max_length=max_length)
    equal(scored(ours, pairs), scored(hf(model, tokenizer, max_length), pairs))


@pytest.mark.parametrize("name", ["gemma2", "mistral", "cohere2", "qwen2_moe"])
def test_a_window_that_is_not_full_is_shared(tokenizer, name):
    model = tiny_model(name, vocabulary=384)
    model.config.sliding_window = 512
    lm = TaskModel(model, tokenizer, max_length=256)
    assert lm._can_share(256)
    equal(scored(lm, requests(3)), scored(hf(model, tokenizer, 256), requests(3)))


def test_batches_of_prefixes_of_many_lengths(tokenizer):
    model = tiny_llama(vocabulary=384)
    one, many = (TaskModel(model, tokenizer, max_length=256) for _ in range(2))
    one._batch_tokens, many._batch_tokens = 1, 100_000
    equal(scored(many, requests(1)), scored(one, requests(1)))


def test_what_is_shared_is_read_once(tokenizer, monkeypatch):
    model = tiny_llama(vocabulary=384)
    read = []
    forward = model.forward

    def counting(input_ids, **options):
        read.append(input_ids.numel())
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", counting)
    lm = TaskModel(model, tokenizer, max_length=256)
    context = " ".join(WORDS * 4)
    pairs = [(context, f" {word} {word}") for word in WORDS]
    scored(lm, pairs)
    assert sum(read) < 3 * len(lm.tok_encode(context))  # and 9 times if none were shared


def test_greedy_is_what_generation_gives(tokenizer):
    model = tiny_llama(vocabulary=384)
    lm = TaskModel(model, tokenizer, max_length=256)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode("the market")])
        best = tokenizer.decode(model(ids).logits[0, -1].argmax())
    tokens = lm.tok_encode(best)
    found = lm._loglikelihood_tokens(
        [(("", ""), ids[0].tolist(), tokens), (("", ""), ids[0].tolist(), [tokens[0] ^ 1])],
        disable_tqdm=True,
    )
    assert [greedy for _, greedy in found] == [len(tokens) == 1, False]


def test_a_damaged_model_is_named(tokenizer):
    model = tiny_llama(vocabulary=384)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        scored(TaskModel(model, tokenizer), [("one", " two")])


def test_a_window_that_is_full_is_not_shared(tokenizer):
    model = tiny_model("mistral", vocabulary=384)
    lm = TaskModel(model, tokenizer, max_length=256)
    assert lm._can_share(7)
    assert not lm._can_share(8)
    equal(scored(lm, requests(2)), scored(hf(model, tokenizer, 256), requests(2)))


def test_a_continuation_longer_than_the_context_is_named(tokenizer):
    lm = TaskModel(tiny_llama(vocabulary=384), tokenizer, max_length=4)
    with pytest.raises(ValueError, match="from 1 to 4 can be scored"):
        scored(lm, [("the market", " opens before sunrise and the first buyers are waiting")])


def test_the_tokenizer_stays_as_it_was(tokenizer):
    TaskModel(tiny_llama(vocabulary=384), tokenizer)
    assert tokenizer.pad_token is None


def test_groups_hold_every_sequence_once():
    draw = random.Random(3)
    sequences = list({tuple(draw.choices(range(3), k=draw.randint(1, 9))) for _ in range(300)})
    groups = group(sequences)
    assert sorted(each for one in groups for each in one.sequences) == sorted(sequences)
    assert all(one.prefix and all(one.rests) for one in groups)
    assert [one for batch in batches(groups, 40) for one in batch] == groups


def test_groups_save_tokens_and_do_not_chain_strangers():
    premise, other = tuple(range(50)), tuple(range(100, 150))
    sequences = [(*premise, 60, k) for k in range(3)] + [(*other, 60, k) for k in range(3)]
    sequences += [(0, *range(200 + 40 * k, 240 + 40 * k)) for k in range(3)]
    groups = group(sequences)
    assert sorted(len(one.rests) for one in groups) == [0, 0, 0, 3, 3]
    assert all(len(one.prefix) == 51 for one in groups if one.rests)


def test_the_dtype_of_the_softmax_is_that_of_hf(tokenizer):
    model = tiny_llama(vocabulary=384).bfloat16()
    pairs = [pair for pair in requests() if pair[0]]
    found = {}
    for dtype in ("bfloat16", "float64"):
        options = {"tokenizer": tokenizer, "softmax_dtype": dtype}
        found[dtype] = scored(TaskModel(model, **options), pairs)
        theirs = HFLM(pretrained=model, **{**options, "tokenizer": copy.deepcopy(tokenizer)})
        # What bfloat16 keeps of a log-probability of 6 is 0.03; its sums over tokens are ours.
        for (ours, _), (other, _) in zip(found[dtype], scored(theirs, pairs), strict=True):
            assert ours == pytest.approx(other, rel=0.02 if dtype == "bfloat16" else 2e-3)
    by_default = scored(TaskModel(model, tokenizer), pairs)
    for each, exact in zip(by_default, found["float64"], strict=True):
        assert each[0] == pytest.approx(exact[0], rel=1e-5)  # float32, whatever the model's dtype
    assert any(abs(a[0] - b[0]) > 0.01 for a, b in zip(by_default, found["bfloat16"], strict=True))
