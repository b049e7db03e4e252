"""Several sequences at once, as on a device, and what happens where memory is short."""

import pytest
import torch
from small_models import ARCHITECTURES, tiny_llama, tiny_model

from mlcalib.evaluation import batching, eval_text, fidelity_of, perplexity_of, reference_of
from mlcalib.evaluation.batching import Batches, bytes_per_token, tokens_that_fit
from mlcalib.evaluation.perplexity import score

SCALE = {"tokens": 200, "seq_len": 32}


@pytest.fixture(scope="module")
def texts(tokenizer):
    return eval_text(tokenizer, "en,sw", "sample", None, tokens=300)


@pytest.fixture
def elsewhere(monkeypatch):
    """Let the CPU pass for a device; returns what sets its free memory."""

    def room_for(model, sequences):
        per_window = bytes_per_token(model) * SCALE["seq_len"]
        fixed = 3 * batching.ROWS * model.config.vocab_size * 4
        free = int((fixed + per_window * (sequences + 0.5)) / batching._USED)
        monkeypatch.setattr(batching, "free_memory", lambda _: (free, free))
        monkeypatch.setattr(batching, "input_device", lambda _: torch.device("meta"))

    return room_for


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_of_a_batch_are_those_of_windows_one_by_one(name, texts):
    model = tiny_model(name, vocabulary=384)
    for text in texts.values():
        alone, together = (score(model, text, batch, **SCALE) for batch in (1, 3))
        assert (alone.loss - together.loss).abs().max() < 1e-4
        assert torch.equal(alone.document, together.document)


def test_on_the_cpu_windows_run_one_by_one(texts):
    shapes = []
    model = tiny_llama(vocabulary=384)
    model.register_forward_pre_hook(
        lambda _, args, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    perplexity_of(model, texts, **SCALE)
    assert set(shapes) == {(1, 32)}


def test_on_a_device_as_many_run_at_once_as_fit(texts, elsewhere):
    model = tiny_llama(vocabulary=384)
    alone = perplexity_of(model, texts, **SCALE)
    elsewhere(model, 3)
    shapes = []
    model.register_forward_pre_hook(
        lambda _, args, named: shapes.append(len(named["input_ids"])), with_kwargs=True
    )
    for code, found in perplexity_of(model, texts, **SCALE).items():
        assert (found.loss - alone[code].loss).abs().max() < 1e-4
    assert shapes == [3, 3, 1] * len(texts)
    elsewhere(model, 10**6)
    assert tokens_that_fit(model, torch.device("meta")) == batching._TOKENS
    elsewhere(model, 0)
    assert Batches().size(model, 32) == 1


def test_fidelity_in_batches_is_that_of_windows_one_by_one(texts, elsewhere):
    model, other = tiny_llama(vocabulary=384), tiny_llama(vocabulary=384, seed=1)
    reference, _ = reference_of(model, texts, **SCALE)
    alone = fidelity_of(other, texts, reference, **SCALE)
    elsewhere(model, 4)
    reference, _ = reference_of(model, texts, **SCALE)
    for code, found in fidelity_of(other, texts, reference, **SCALE).items():
        assert (found.kl - alone[code].kl).abs().max() < 1e-4
        assert torch.equal(found.agrees, alone[code].agrees)


def short_of_memory(model, most):
    """Let a model fail, after its layers have run, on more than so many sequences."""
    sizes = []

    def hook(_, args, output):
        sizes.append(len(output.logits))
        if len(output.logits) > most:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_hook(hook)
    return sizes


def test_where_memory_is_short_batches_are_halved_and_it_is_said(texts, elsewhere, caplog):
    model = tiny_llama(vocabulary=384)
    reference, alone = reference_of(model, texts, **SCALE)
    states = {code: reference._states(code) for code in texts}
    elsewhere(model, 6)
    sizes = short_of_memory(model, 1)
    reference, found = reference_of(model, texts, **SCALE)
    assert sizes[:3] == [6, 3, 1]
    assert set(sizes[3:]) == {1}
    assert "6 sequences at once do not fit into memory; now 3" in caplog.text
    for code in texts:
        assert torch.equal(found[code].loss, alone[code].loss)
        assert torch.equal(reference._states(code), states[code])  # none twice


def test_a_sequence_that_does_not_fit_says_what_takes_less(texts, elsewhere, monkeypatch):
    model = tiny_llama(vocabulary=384)
    elsewhere(model, 2)
    monkeypatch.setattr("mlcalib.models.device.free_memory", lambda _: (10**9, 2 * 10**9))
    short_of_memory(model, 0)
    with pytest.raises(torch.OutOfMemoryError, match=r"one sequence of 32 tokens.*--seq-len"):
        perplexity_of(model, texts, **SCALE)


def test_the_plan_says_what_an_evaluation_takes(tmp_path, tokenizer):
    model = tiny_llama(vocabulary=384)
    model.save_pretrained(tmp_path / "model")
    weights = sum(each.nbytes for each in model.parameters())
    said = batching.plan_evaluation(str(tmp_path / "model"), "auto", torch.device("cpu"), 32)
    assert f"weights {weights / 1e9:.3f} GB; 1 sequences of 32 tokens" in said
    with pytest.raises(FileNotFoundError):
        batching.plan_evaluation(str(tmp_path / "none"), "auto", torch.device("cpu"), 32)


def task_model(model, tokenizer, **options):
    pytest.importorskip("lm_eval")
    from mlcalib.evaluation.tasks.model import TaskModel

    return TaskModel(model, tokenizer, max_length=256, progress=False, **options)


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, 0) for each in arguments]


def test_items_of_tasks_are_halved_too(tokenizer, caplog):
    model = tiny_llama(vocabulary=384)
    texts = [(f"{word} market", " opens early") for word in ("the", "soko", "a", "no", "my")]
    requests = instances("loglikelihood", *texts)
    lm = task_model(model, tokenizer)
    expected = lm.loglikelihood(requests, disable_tqdm=True)
    sizes = short_of_memory(model, 2)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    assert sizes[0] == 5
    assert max(sizes[2:]) <= 2
    assert "5 items at once do not fit into memory" in caplog.text
    for (one, greedy), (other, same) in zip(expected, found, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
        assert greedy == same


def test_texts_that_are_generated_are_halved_too(tokenizer, caplog):
    model = tiny_llama(vocabulary=384)
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    requests = instances("generate_until", *((text, options) for text in ("the", "soko", "a b c")))
    lm = task_model(model, tokenizer, batch_size=3)
    expected = lm.generate_until(requests, disable_tqdm=True)
    short_of_memory(model, 1)
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert "3 texts at once do not fit into memory; now 1" in caplog.text
