"""Generation, judges that run here, both orders, and runs that are killed."""

import json
import re

import pytest
import torch
from small_models import tiny_llama
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from mlcalib.judging import (
    LanguageModelJudge,
    Opinion,
    Pair,
    Prompt,
    RewardModelJudge,
    generate,
    is_reward_model,
    judge,
    judged_win_rates,
    position_bias,
    read_generations,
    read_template,
)
from mlcalib.judging import (
    answers as generating,
)
from mlcalib.judging.judges import fill

PROMPTS = [
    Prompt("1", "en", "The market opens before sunrise."),
    Prompt("2", "en", "The first buyers"),
    Prompt("1", "sw", "Soko hufunguliwa kabla ya jua kuchomoza na wanunuzi"),
    Prompt("1", "zh", "市场在日出前开门。"),
]
PAIRS = [
    Pair(str(number), code, f"prompt {number}", f"good {number}", f"bad {number}")
    for code in ("en", "sw")
    for number in range(6)
]
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama(vocabulary=384)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    base = tiny_llama(vocabulary=384).config
    base.num_labels = 1
    base.pad_token_id = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForSequenceClassification(base).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_greedy_answers(folder, tokenizer, tmp_path):
    out = tmp_path / "answers.jsonl"
    made = generate(str(folder), PROMPTS, out, max_tokens=8, progress=False)
    model = tiny_llama(vocabulary=384)
    for prompt, answer in zip(PROMPTS, made, strict=True):
        assert (answer.id, answer.language, answer.prompt) == (
            prompt.id, prompt.language, prompt.prompt
        )  # fmt: skip
        ids = tokenizer(prompt.prompt).input_ids
        expected = []
        for _ in range(8):  # greedy, the plainest way
            with torch.no_grad():
                expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
            if expected[-1] in (model.config.eos_token_id, tokenizer.eos_token_id):
                expected.pop()
                break
        assert answer.output == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert sorted(map(str, read_generations(out))) == sorted(map(str, made))


def test_batches_of_padded_prompts_give_the_same_answers(folder, tmp_path):
    alone = generate(str(folder), PROMPTS, tmp_path / "1.jsonl", max_tokens=8, progress=False)
    batched = generate(
        str(folder), PROMPTS, tmp_path / "4.jsonl", max_tokens=8, batch_size=3, progress=False
    )
    assert alone == batched


def test_generation_goes_on_after_a_kill(folder, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    generate(str(folder), PROMPTS, whole, max_tokens=4, progress=False)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:2]) + lines[2][:-7])
    generate(str(folder), PROMPTS, cut, max_tokens=4, progress=False)
    assert cut.read_bytes() == whole.read_bytes()
    shapes = []
    answer = generating._answer
    with monkeypatch.context() as patch:
        patch.setattr(
            generating, "_answer", lambda *args: shapes.append(len(args[2])) or answer(*args)
        )
        batched = tmp_path / "batched.jsonl"
        generate(str(folder), PROMPTS, batched, max_tokens=4, batch_size=3, progress=False)
        batched.write_bytes(b"".join(batched.read_bytes().splitlines(keepends=True)[:2]))
        generate(str(folder), PROMPTS, batched, max_tokens=4, batch_size=3, progress=False)
    assert shapes == [3, 1] * 2  # the same batches again, so the same bits
    assert len(read_generations(batched)) == 4
    monkeypatch.setattr("mlcalib.judging.answers.load_to_run", lambda *_: pytest.fail("loaded"))
    generate(str(folder), PROMPTS, cut, max_tokens=4, progress=False)
    for options in ({"max_tokens": 5}, {"max_tokens": 4, "batch_size": 2}):
        with pytest.raises(ValueError, match="made with other texts, models or options"):
            generate(str(folder), PROMPTS, cut, progress=False, **options)


def test_a_chat_model_is_asked_by_its_template(folder, tokenizer, tmp_path, monkeypatch):
    from mlcalib.models.loading import load_tokenizer

    def with_template(source):
        loaded = load_tokenizer(source)
        loaded.chat_template = CHAT
        return loaded

    asked = []
    answer = generating._answer
    monkeypatch.setattr(generating, "load_tokenizer", with_template)
    monkeypatch.setattr(
        generating, "_answer", lambda m, t, ids, n: asked.extend(ids) or answer(m, t, ids, n)
    )
    generate(str(folder), PROMPTS[:1], tmp_path / "a.jsonl", max_tokens=2, progress=False)
    assert tokenizer.decode(asked[0]) == "[user]The market opens before sunrise.</s>[assistant]"


def test_what_cannot_be_generated(folder, tmp_path):
    with pytest.raises(ValueError, match="no prompt was given"):
        generate(str(folder), [], tmp_path / "a")
    with pytest.raises(ValueError, match="max_tokens is 0"):
        generate(str(folder), PROMPTS, tmp_path / "a", max_tokens=0)
    with pytest.raises(ValueError, match=r"prompt 1 in 'en': it has .* 4,096 of the model's"):
        generate(str(folder), PROMPTS, tmp_path / "a", max_tokens=4096, progress=False)


def test_likelihood_judge(folder, tokenizer):
    template = read_template()
    by = LanguageModelJudge(str(folder), template)
    model = tiny_llama(vocabulary=384)
    for pair in PAIRS[:3]:
        opinion = by.compare(pair)
        ids = tokenizer(fill(template, pair).rstrip() + "\n\nReply:").input_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        replies = {letter: tokenizer(f" {letter}").input_ids for letter in "ABC"}
        space = {reply[0] for reply in replies.values()}
        assert len(space) == 1  # here a reply is a space and a letter
        with torch.no_grad():
            after = model(torch.tensor([ids + list(space)])).logits[0, -1]
        for letter, reply in replies.items():
            expected = logits.log_softmax(0)[reply[0]] + after.log_softmax(0)[reply[1]]
            assert opinion.evidence["log_likelihood"][letter] == pytest.approx(
                float(expected), abs=1e-4
            )
        scores = opinion.evidence["log_likelihood"]
        assert opinion.letter == max(scores, key=scores.get)


@torch.no_grad()
def test_reward_judge(reward, tokenizer, tmp_path):
    assert is_reward_model(str(reward))
    by = RewardModelJudge(str(reward))
    judgements = judge(PAIRS, by, tmp_path / "out.jsonl", progress=False)
    model = AutoModelForSequenceClassification.from_pretrained(reward)
    for pair, each in zip(PAIRS, judgements, strict=True):
        rewards = [
            float(model(torch.tensor([tokenizer(f"{pair.prompt}\n{answer}").input_ids])).logits)
            for answer in (pair.first, pair.second)
        ]
        assert each.verdict == ("second" if rewards[1] > rewards[0] else "first")
    assert position_bias(judgements) is None
    tied = judge(PAIRS, RewardModelJudge(str(reward), 1e6), tmp_path / "tied", progress=False)
    assert {each.verdict for each in tied} == {"tie"}


def test_what_is_no_reward_model(folder, tokenizer, tmp_path):
    assert not is_reward_model(str(folder))
    with pytest.raises(ValueError, match=r"lacks weights \(score.weight\)|has 2 labels"):
        RewardModelJudge(str(folder))
    with pytest.raises(ValueError, match="margin is -1"):
        RewardModelJudge(str(folder), -1)


class Scripted:
    """A judge whose opinions are given."""

    reads_both = True
    workers = 1

    def __init__(self, opinion, name="scripted"):
        self.opinion, self.identity, self.asked = opinion, {"model": name}, []

    def compare(self, pair):
        self.asked.append((pair.language, pair.id, pair.first))
        return Opinion(self.opinion(pair), {"why": "because"})


def test_both_orders(tmp_path):
    by = Scripted(lambda pair: "A" if pair.first.startswith("good") else "B")
    judgements = judge(PAIRS, by, tmp_path / "out.jsonl", progress=False)
    assert len(by.asked) == len(judgements) == 24
    rates = judged_win_rates(judgements)
    assert list(rates) == ["en", "sw", "all"]
    assert (rates["en"].rate, rates["en"].losses, rates["en"].verdicts) == (0, 6, 12)
    assert rates["all"].n == 12
    bias = position_bias(judgements)
    assert (bias.both, bias.same, bias.decided, bias.shown_first) == (12, 12, 24, 0.5)


def test_a_biased_judge_gives_no_winner(tmp_path):
    judgements = judge(PAIRS, Scripted(lambda _: "A"), tmp_path / "out.jsonl", progress=False)
    assert judged_win_rates(judgements)["all"].rate == 0.5
    bias = position_bias(judgements)
    assert (bias.same, bias.shown_first) == (0, 1)
    assert bias.low > 0.8


def test_ties_and_replies_without_a_letter(tmp_path):
    by = Scripted(lambda pair: None if pair.language == "sw" else "C")
    judgements = judge(PAIRS, by, tmp_path / "out.jsonl", progress=False)
    rates = judged_win_rates(judgements)
    assert list(rates) == ["en"]
    assert (rates["en"].ties, rates["en"].rate) == (6, 0.5)
    assert position_bias(judgements).decided == 0


def test_judging_goes_on_after_a_kill(tmp_path):
    out = tmp_path / "out.jsonl"
    whole = judge(PAIRS, Scripted(lambda pair: "B"), out, progress=False)

    def dies(pair):
        if (pair.language, pair.id) == ("sw", "2"):
            raise KeyboardInterrupt
        return "B"

    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        judge(PAIRS, Scripted(dies), out, progress=False)
    there = len(out.read_text().splitlines())
    assert 0 < there < 24
    again = Scripted(lambda pair: "B")
    assert judge(PAIRS, again, out, progress=False) == whole
    assert len(again.asked) == 24 - there
    other = Scripted(lambda pair: "B", "another")
    with pytest.raises(ValueError, match="other texts, models or options"):
        judge(PAIRS, other, out, progress=False)
    with pytest.raises(ValueError, match="no pair of answers"):
        judge([], other, out)


def test_templates(tmp_path):
    path = tmp_path / "question.txt"
    path.write_text("{prompt} {first} {second} {language} {json}")
    pair = Pair("1", "sw", "{second}", "{first} {prompt}", "{language}")
    assert fill(read_template(path), pair) == "{second} {first} {prompt} {language} Swahili {json}"
    path.write_text("{prompt}")
    with pytest.raises(ValueError, match=re.escape("has no {first}, {second}")):
        read_template(path)
    assert "{prompt}" in read_template()


def test_evidence_is_kept(tmp_path):
    judge(PAIRS[:1], Scripted(lambda _: "C"), tmp_path / "out.jsonl", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["order"] for row in rows] == ["first-second", "second-first"]
    assert {row["why"] for row in rows} == {"because"}
