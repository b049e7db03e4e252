"""Any quantizer's codes in any format that holds them, by the command line; then check, convert."""

import json

import pytest
import torch
from small_models import tiny_llama
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import mlcalib
from mlcalib.cli import app


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(vocabulary=384, tied=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


TEXT = ["--languages", "en,sw", "--tokens", 128, "--seq-len", 32]
W8A8 = ["--bits", 8, "--group-size", -1, "--symmetric"]
SYMMETRIC = ["--bits", 4, "--group-size", 32, "--symmetric"]
ASYMMETRIC = ["--bits", 4, "--group-size", 32]


@pytest.mark.parametrize(
    ("method", "form", "options"),
    [
        ("gptq", "gptq", SYMMETRIC),
        ("gptq", "awq", ASYMMETRIC),
        ("awq", "compressed-tensors", ASYMMETRIC),
        ("awq", "gptq-v2", SYMMETRIC),
        ("gptq", "gguf", SYMMETRIC),
        ("awq", "gguf", ASYMMETRIC),
        ("rtn", "gguf", ["--bits", 8, "--group-size", 32, "--symmetric"]),
        ("gptq", "compressed-tensors-int8", W8A8),
        ("smoothquant", "compressed-tensors-int8", [*W8A8, "--option", "alpha=search"]),
    ],
)
def test_quantizers_and_formats_go_together(method, form, options, folder, tmp_path):
    out = tmp_path / "out"
    run("quantize", folder, "--out", out, "--method", method, "--format", form, *options, *TEXT)
    report = run("check", out)
    assert "no errors, no warnings" in report
    assert "14 quantized linears" in report
    assert (out / "README.md").is_file()
    if form in ("gguf", "compressed-tensors", "compressed-tensors-int8"):
        source = {"gguf_file": "model.gguf"} if form == "gguf" else {}
        loaded = AutoModelForCausalLM.from_pretrained(out, **source)
        with torch.no_grad():
            assert loaded(torch.arange(8)[None]).logits.isfinite().all()


def test_what_was_quantized_converts_all_the_way(folder, tmp_path):
    start = tmp_path / "gptq"
    run("quantize", folder, "--out", start, "--format", "gptq", *SYMMETRIC, *TEXT)
    for form in ("awq", "compressed-tensors", "gptq-v2", "gguf"):
        # float32 scales of compressed-tensors hold float16 ones; GGUF's are float16.
        run("convert", start, tmp_path / form, "--format", form)
        assert mlcalib.check(tmp_path / form).ok


def test_what_is_not_given_is_left_to_the_method(folder, tmp_path):
    for name, more, symmetric in (("out", [], True), ("other", ["--asymmetric"], False)):
        out = tmp_path / name
        run("quantize", folder, "--out", out, "--method", "smoothquant", *more, *TEXT)
        options = json.loads((out / "mlcalib.json").read_text())["recipe"]["options"]
        found = [options[name] for name in ("bits", "group_size", "symmetric")]
        assert found == [8, -1, symmetric]
    with pytest.raises(ValueError, match="bits is given twice"):
        run("quantize", folder, "--out", tmp_path / "x", "--bits", 4, "--option", "bits=3")


def test_the_format_that_was_asked_for_is_saved(folder, tmp_path):
    options = {"method": "rtn", "group_size": 32, "progress": False}
    quantized = mlcalib.quantize(folder, format="awq", **options)
    for given, method in (([], "awq"), (["gptq"], "gptq")):
        quantized.save(tmp_path / method, *given)
        config = json.loads((tmp_path / method / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == method
