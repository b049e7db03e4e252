"""Losses on held-out text against the plainest way to compute them."""

import pytest
import torch
from small_models import tiny_llama, tiny_model

import mlcalib
from mlcalib.calibration_sets import stream
from mlcalib.corpora import open_corpus
from mlcalib.evaluation import layer_losses
from mlcalib.models import find_adapter

TEXT = {"tokens": 50, "seq_len": 32, "progress": False}


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture(scope="module")
def quantize(tokenizer):
    def quantize(model, languages="en,sw", **options):
        calibration = mlcalib.calibration(tokenizer, languages, tokens=128, seq_len=32)
        options = {"group_size": 32, "progress": False, **options}
        return mlcalib.quantize(model, calibration, tokenizer=tokenizer, **options)

    return quantize


def plain_losses(model, quantized, ids, seq_len):
    """‖x·Dᵀ‖² per token, summed over a plain forward of the float model in float64."""
    found = {}
    hooks = []
    for name, linear in find_adapter(type(model).__name__).named_linears(model):
        change = linear.weight.double() - quantized.linears[name].dequantize().double()

        def hook(_, args, name=name, change=change):
            x = args[0][0].double()
            found[name] = found.get(name, 0.0) + float((x @ change.T).square().sum()) / len(ids)

        hooks.append(linear.register_forward_pre_hook(hook))
    with torch.no_grad():
        for start in range(0, len(ids), seq_len):
            model(ids[None, start : start + seq_len])
    for hook in hooks:
        hook.remove()
    return found


def test_losses_are_those_of_the_plain_way(model, quantize, tokenizer):
    quantized = [quantize(model, "en"), quantize(model, bits=8)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = layer_losses(model, quantized, "sw,en", "sample", **TEXT)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for each, losses in zip(quantized, measured, strict=True):
        assert list(losses) == list(each.linears)
        for code in ("sw", "en"):
            documents = list(open_corpus("sample").documents(code, "eval"))
            ids = stream(tokenizer, documents).ids[: TEXT["tokens"]]
            expected = plain_losses(model, each, ids, TEXT["seq_len"])
            assert {name: by[code] for name, by in losses.items()} == pytest.approx(
                expected, rel=1e-4
            )


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_languages_in_turns_give_the_same(family, quantize, caplog):
    model = tiny_model(family, vocabulary=384)
    quantized = [quantize(model, symmetric=True), quantize(model, symmetric=True, bits=8)]
    runs = 0

    def count(*_):
        nonlocal runs
        runs += 1

    model.model.layers[0].self_attn.q_proj.register_forward_hook(count)
    at_once = layer_losses(model, quantized, "sw,en,fr", **TEXT)
    assert "turns" not in caplog.text
    once, runs = runs, 0
    assert layer_losses(model, quantized, "sw,en,fr", memory=1e-6, **TEXT) == at_once
    assert "at most 1 of 3 languages are held at a time, in 3 turns" in caplog.text
    assert runs == once == 6


def test_a_model_from_disk_and_what_was_skipped(model, quantize, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    quantized = quantize(model, ignore=["down_proj"])
    (losses,) = layer_losses(tmp_path, [quantized], "en", **TEXT)
    assert losses == layer_losses(model, [quantized], "en", **TEXT)[0]
    assert losses.keys() == quantized.linears.keys()
    assert not any("down_proj" in name for name in losses)


def test_an_expert_has_no_loss_in_a_language_that_never_reached_it(quantize):
    model = tiny_model("qwen2_moe", vocabulary=384)
    quantized = quantize(model, symmetric=True)
    (losses,) = layer_losses(model, [quantized], "en,zh", tokens=4, seq_len=4, progress=False)
    experts = [by for name, by in losses.items() if ".experts." in name]
    assert len(experts) == 2 * 12 * 3
    assert any(len(by) < 2 for by in experts)
    assert all(by.keys() == {"en", "zh"} for name, by in losses.items() if ".experts." not in name)


def test_bad_arguments(model, quantize):
    with pytest.raises(ValueError, match="No quantized model was given"):
        layer_losses(model, [])
    with pytest.raises(NotImplementedError, match="awq folded scales into the model"):
        layer_losses(model, [quantize(model, method="awq")], "en", **TEXT)
    wider = tiny_llama(vocabulary=384, intermediate=192)
    with pytest.raises(ValueError, match=r"gate_proj is \(128, 64\) in .*, but \(192, 64\) in the"):
        layer_losses(wider, [quantize(model)], "en", **TEXT)
    shorter = tiny_llama(vocabulary=384, layers=1)
    with pytest.raises(ValueError, match=r"layers\.1\..* but missing in the float model"):
        layer_losses(shorter, [quantize(model)], "en", **TEXT)
    with pytest.raises(ValueError, match="tokens"):
        layer_losses(model, [quantize(model)], "en", tokens=10**6, seq_len=32, progress=False)
