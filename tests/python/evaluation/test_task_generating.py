"""Generation in batches that texts leave when they end, against lm-eval's own ``hf``."""

import copy

import pytest
import torch
from small_models import tiny_llama, tiny_model

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from mlcalib.evaluation.tasks.model import TaskModel

PROMPTS = [
    "the market",
    "soko",
    "the market opens before sunrise and the first buyers are waiting",
    "市场在日出前",
    "ya jua la asubuhi",
]
NEW_TOKENS = 40


def requests(until, prompts=PROMPTS, **options):
    given = {"until": until, "max_gen_toks": NEW_TOKENS, "do_sample": False, **options}
    return [Instance("generate_until", {}, (prompt, given), 0) for prompt in prompts]


def both(model, tokenizer, batch_size=3):
    hf = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1, max_length=256)
    ours = TaskModel(model, tokenizer, batch_size=batch_size, max_length=256, progress=False)
    return ours, hf


def common_characters(hf):
    """The characters that generations hold, those of most first."""
    written = "".join(hf.generate_until(requests([]), disable_tqdm=True))
    return sorted(set(written), key=lambda each: (-written.count(each), each))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "cohere", "mistral"])
def test_texts_are_those_of_hf(tokenizer, name):
    ours, hf = both(tiny_model(name, vocabulary=384), tokenizer)
    for stop in common_characters(hf)[:4]:
        assert ours.generate_until(requests([stop])) == hf.generate_until(
            requests([stop]), disable_tqdm=True
        )


@pytest.mark.parametrize("name", ["gemma2", "mistral", "cohere2", "qwen2_moe"])
def test_a_window_that_is_not_full_changes_nothing(tokenizer, name):
    model = tiny_model(name, vocabulary=384)
    model.config.sliding_window = 512
    ours, hf = both(model, tokenizer)
    assert ours._can_share(256)
    stop = common_characters(hf)[0]
    assert ours.generate_until(requests([stop])) == hf.generate_until(
        requests([stop]), disable_tqdm=True
    )


def test_texts_end_where_the_model_ends_them(tokenizer):
    model = tiny_llama(vocabulary=384)
    ours, hf = both(model, tokenizer)
    ids = [set(hf.tok_encode(text)) for text in hf.generate_until(requests([]), disable_tqdm=True)]
    ends = sorted(set.union(*ids) - set.intersection(*ids))[:2]
    model.generation_config.eos_token_id = ends
    expected = hf.generate_until(requests([]), disable_tqdm=True)
    assert ours.generate_until(requests([])) == expected
    assert len({len(hf.tok_encode(text)) for text in expected}) > 1


def test_what_has_ended_is_not_read(tokenizer, monkeypatch):
    model = tiny_llama(vocabulary=384)
    ours, hf = both(model, tokenizer, batch_size=len(PROMPTS))
    stop = common_characters(hf)[0]
    rows = []
    forward = model.forward

    def counting(input_ids, **options):
        rows.append(len(input_ids))
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", counting)
    ours.generate_until(requests([stop]))
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == len(PROMPTS) > rows[-1]


def test_the_cache_holds_what_was_written(tokenizer):
    model = tiny_llama(vocabulary=384)
    ours, hf = both(model, tokenizer, batch_size=1)
    prompts = [" ".join(PROMPTS)]
    long = {"max_gen_toks": 120}  # grows twice
    assert ours.generate_until(requests([], prompts, **long)) == hf.generate_until(
        requests([], prompts, **long), disable_tqdm=True
    )


def test_what_is_drawn_or_searched_is_left_to_transformers(tokenizer):
    model = tiny_llama(vocabulary=384)
    ours, hf = both(model, tokenizer, batch_size=1)
    for options in (
        {"do_sample": True, "temperature": 1.0},
        {"num_beams": 2},
        {"min_new_tokens": 30},
    ):
        torch.manual_seed(5)
        expected = hf.generate_until(requests([], **options), disable_tqdm=True)
        torch.manual_seed(5)
        assert ours.generate_until(requests([], **options)) == expected
