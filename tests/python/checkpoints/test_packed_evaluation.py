"""Checkpoints are evaluated on packed weights; what is measured is what dense weights give."""

import pytest
import torch
from foreign_reader import from_transformers
from small_models import tiny_llama
from small_tasks import write_all
from test_packed import packed_names

import mlcalib
from mlcalib.checkpoints.packed import load_to_run
from mlcalib.evaluation.subject import Subject

OPTIONS = {"tokens": 96, "seq_len": 32, "progress": False, "dtype": "float32"}


@pytest.fixture(scope="module")
def float_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama(vocabulary=384)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(float_folder, tmp_path_factory):
    """Format → (what quantize returned, the folder)."""
    found = {}
    for form in ("compressed-tensors", "gptq", "awq"):
        options = {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": form == "gptq"}
        quantized = mlcalib.quantize(str(float_folder), format=form, progress=False, **options)
        found[form] = quantized, tmp_path_factory.mktemp(form) / "out"
        quantized.save(found[form][1], form)
    return found


def values(rows, model):
    return [row.value for row in rows if row.model == str(model)]


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_perplexity_and_fidelity(form, checkpoints, float_folder):
    quantized, folder = checkpoints[form]
    assert len(packed_names(Subject(folder, "float32").model)) == 14
    packed = mlcalib.evaluate([float_folder, folder], "en,sw", fidelity=True, **OPTIONS)
    dense = mlcalib.evaluate([float_folder, quantized], "en,sw", fidelity=True, **OPTIONS)
    kinds = [(row.task, row.metric, row.language) for row in packed]
    assert kinds == [(row.task, row.metric, row.language) for row in dense]
    losses = [
        (left.value, right.value)
        for left, right in zip(packed, dense, strict=True)
        if left.metric == "token_loss" and left.method != "float"
    ]
    assert len(losses) == 2
    for left, right in losses:
        assert left == pytest.approx(right, abs=1e-5)
    divergences = [
        (left.value, right.value)
        for left, right in zip(packed, dense, strict=True)
        if left.task == "fidelity" and "kl" in left.metric
    ]
    assert divergences
    for left, right in divergences:
        assert left == pytest.approx(right, rel=1e-3, abs=1e-6)


def test_tasks(checkpoints, tmp_path):
    pytest.importorskip("lm_eval")
    from mlcalib.evaluation.lm_eval import LoadedModel
    from mlcalib.evaluation.tasks import run_tasks

    data = write_all(tmp_path / "data")
    quantized, folder = checkpoints["compressed-tensors"]
    assert len(packed_names(LoadedModel(str(folder), "float32").model)) == 14
    options = {"data": data, "progress": False}
    packed = run_tasks(str(folder), None, "xnli,xcopa", ["sw"], **options)
    dense = run_tasks(quantized.model, quantized.tokenizer, "xnli,xcopa", ["sw"], **options)
    assert packed.items == dense.items
    assert packed.items


def test_w8a8_rounds_activations(float_folder, tmp_path):
    options = {"method": "rtn", "bits": 8, "group_size": -1, "symmetric": True, "progress": False}
    form = "compressed-tensors-int8"
    quantized = mlcalib.quantize(str(float_folder), format=form, **options)
    quantized.save(tmp_path / "out", form)
    assert not packed_names(load_to_run(str(tmp_path / "out"), "float32"))
    ids = torch.arange(32)[None]
    with torch.no_grad():
        found = load_to_run(str(tmp_path / "out"), "float32")(ids).logits
        theirs = from_transformers(tmp_path / "out", dtype=torch.float32)(ids).logits
        assert torch.equal(found, theirs)
        assert not torch.allclose(found, quantized.model(ids).logits, atol=1e-5)
