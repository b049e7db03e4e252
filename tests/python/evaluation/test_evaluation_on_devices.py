"""Models are evaluated on a device as on the CPU, in batches, and their answers are the same."""

import pytest
import torch
from devices import each_device
from small_models import tiny_llama

import mlcalib
from mlcalib.judging import LanguageModelJudge, generate
from mlcalib.judging.texts import Pair
from mlcalib.results.generations import Prompt


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("models")
    tiny_llama(vocabulary=384).save_pretrained(root / "float")
    tokenizer.save_pretrained(root / "float")
    options = {"method": "rtn", "group_size": 32, "symmetric": True, "progress": False}
    mlcalib.quantize(root / "float", device="cpu", **options).save(root / "q")
    return [str(root / "float"), str(root / "q")]


@each_device
def test_scores_are_those_of_the_cpu(folders, device, caplog, tmp_path):
    options = {"tokens": 96, "seq_len": 32, "fidelity": True, "progress": False}
    options |= {"dtype": "float32", "cache": tmp_path / "cache"}
    here, there = (
        mlcalib.evaluate(folders, "en,sw", "sample", device=each, **options)
        for each in ("cpu", device)
    )
    assert len(here) == len(there) > 0
    for row, other in zip(here, there, strict=True):
        assert (row.metric, row.language, row.n) == (other.metric, other.language, other.n)
        assert other.value == pytest.approx(row.value, rel=1e-3, abs=1e-4)
    assert "linears hold dequantized weights in float32" in caplog.text


@each_device
def test_items_of_tasks_are_scored_there(folders, device, tokenizer):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from mlcalib.evaluation.lm_eval import LoadedModel

    texts = [("the market", " opens"), ("the market", " closes"), ("soko", " la")]
    scores = [
        LoadedModel(folders[0], "float32", each, max_length=64, progress=False).loglikelihood(
            [Instance("loglikelihood", {}, each, 0) for each in texts], disable_tqdm=True
        )
        for each in ("cpu", device)
    ]
    for (one, greedy), (other, same) in zip(*scores, strict=True):
        assert other == pytest.approx(one, abs=1e-3)
        assert greedy == same


@each_device
def test_answers_and_opinions_are_those_of_the_cpu(folders, device, tmp_path):
    prompts = [Prompt(str(n), "en", text) for n, text in enumerate(("the market", "soko la"))]
    answers = [
        generate(folders[0], prompts, tmp_path / each, max_tokens=4, device=each, progress=False)
        for each in ("cpu", device)
    ]
    assert answers[0] == answers[1]
    pair = Pair("0", "en", "the market", "opens", "closes")
    template = "{prompt}: {first} or {second}?"
    opinions = [LanguageModelJudge(folders[0], template, device=each) for each in ("cpu", device)]
    identities = [each.identity for each in opinions]
    assert "device" not in identities[0]
    assert "device" in identities[1]
    found = [each.compare(pair).evidence["log_likelihood"] for each in opinions]
    assert found[1] == pytest.approx(found[0], abs=1e-3)


@each_device
def test_a_checkpoint_is_loaded_there(folders, device):
    model = mlcalib.load(folders[1], "float32", device)
    assert {each.device.type for each in model.parameters()} == {device}
    ids = torch.arange(20)[None]
    with torch.no_grad():
        here = mlcalib.load(folders[1], "float32", "cpu")(ids).logits
        there = model(ids.to(device)).logits.cpu()
    assert (here - there).abs().max() < 1e-3


@each_device
def test_a_model_is_quantized_where_each_block_is(device, calibration, tokenizer):
    options = {"tokenizer": tokenizer, "group_size": 32, "progress": False}
    expected = mlcalib.quantize(tiny_llama(vocabulary=384), calibration, device="cpu", **options)
    model = tiny_llama(vocabulary=384)
    model.model.layers[1].to(torch.device(device, 0))
    found = mlcalib.quantize(model, calibration, device="cpu", **options)
    for name, linear in expected.linears.items():
        where = device if ".layers.1." in name else "cpu"
        assert found.linears[name].codes.device.type == where  # the model stays spread
        assert torch.equal(found.linears[name].codes.cpu(), linear.codes)
    model.model.layers[0].to(torch.device(device, 1))
    there = mlcalib.quantize(model, calibration, device="auto", **options)
    places = {name: each.codes.device.index for name, each in there.linears.items()}
    assert set(places.values()) == {0, 1}
    for name, losses in expected.losses.items():
        assert there.losses[name] == pytest.approx(losses, rel=0.05)
