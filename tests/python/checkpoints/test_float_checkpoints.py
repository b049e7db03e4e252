"""Whole checkpoints of NF4, FP8, MXFP4 and NVFP4: made, read by others, converted, checked."""

import json

import pytest
import torch
from foreign_reader import from_transformers
from small_models import tiny_llama
from test_checkpoints import logits
from test_conversion import all_same

import mlcalib
from mlcalib.checkpoints import load_quantized
from mlcalib.checkpoints.packed.loading import load_to_run
from mlcalib.models.loading import load_model

BFLOAT = torch.bfloat16
SCHEMES = {
    "NF4": {"group_size": 32},
    "NF4_DOUBLE": {"group_size": 32},
    "FP8": {},
    "FP8_DYNAMIC": {},
    "MXFP4A16": {},
    "NVFP4A16": {},
    "NVFP4": {},
}
ROUNDED = ("FP8", "FP8_DYNAMIC", "NVFP4")  # activations, while the model runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    out = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(vocabulary=384, dtype=BFLOAT).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=128, seq_len=32)


@pytest.fixture(scope="module", params=SCHEMES)
def made(request, folder, text, tmp_path_factory):
    """(scheme, the model that was quantized in memory, its checkpoint)."""
    asked = SCHEMES[request.param]
    quantized = mlcalib.quantize(folder, text, scheme=request.param, progress=False, **asked)
    out = tmp_path_factory.mktemp("out") / "checkpoint"
    quantized.save(out)
    return request.param, quantized, out


def test_codes_come_back(made):
    scheme, quantized, out = made
    assert all_same(load_quantized(out), quantized.linears)
    if scheme not in ROUNDED:
        assert torch.equal(logits(mlcalib.load(out)), logits(quantized.model))
    assert load_to_run(str(out)).dtype == BFLOAT


def test_the_same_is_made_block_by_block(made, folder, text, tmp_path):
    scheme, quantized, _ = made
    mlcalib.quantize_checkpoint(
        folder, tmp_path / "out", text, scheme=scheme, progress=False, **SCHEMES[scheme]
    )
    assert all_same(load_quantized(tmp_path / "out"), quantized.linears)


def test_converting_keeps_all_of_it(made, tmp_path):
    _, quantized, out = made
    form = json.loads((out / "mlcalib.json").read_text())["recipe"]["format"]
    mlcalib.convert(out, tmp_path / "same", form)
    assert all_same(load_quantized(tmp_path / "same"), quantized.linears)
    mlcalib.convert(out, tmp_path / "dense", "dense")
    assert torch.equal(logits(load_model(str(tmp_path / "dense"))), logits(quantized.model))
    with pytest.raises(ValueError, match="holds grids of integer numbers, not of"):
        mlcalib.convert(out, tmp_path / "gptq", "gptq")


def test_checks_find_nothing(made):
    scheme, _, out = made
    report = mlcalib.check(out)
    assert report.status == 0, report
    assert report.readers["transformers"].loads
    assert report.readers["vLLM"].loads is (None if scheme.startswith("NF4") else True)


def test_transformers_computes_what_the_checkpoint_says(made):
    scheme, quantized, out = made
    if scheme.startswith("NF4"):
        pytest.importorskip("bitsandbytes")
        from bitsandbytes.functional import dequantize_4bit
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(out)
        for name, linear in quantized.linears.items():
            weight = loaded.get_submodule(name).weight
            found = dequantize_4bit(weight.data, weight.quant_state)
            assert torch.equal(found.to(BFLOAT), linear.dequantize().to(BFLOAT))
        # Its kernels for CPUs round differently.
        apart = (logits(loaded) - logits(quantized.model)).abs().max()
        assert apart < 0.2 * logits(quantized.model).std()
        return
    loaded = from_transformers(out)
    found = logits(loaded)  # it decompresses in the first forward
    for name, linear in quantized.linears.items():
        weight = loaded.get_submodule(name).weight
        assert torch.equal(weight, linear.dequantize().to(BFLOAT))
    if scheme not in ROUNDED:
        assert torch.equal(found, logits(quantized.model))
