"""One quantization, saved in several formats: the same codes, scales and zero points in each."""

import pytest
import torch
from small_models import tiny_llama

import mlcalib
from mlcalib.checkpoints import load_quantized

ALL = ["compressed-tensors", "gptq", "awq", "gguf"]


@pytest.fixture
def quantize(tokenizer):
    def quantize(dtype, **options):
        model = tiny_llama(vocabulary=384, dtype=dtype)
        asked = {"method": "rtn", "group_size": 32, "tokenizer": tokenizer, "progress": False}
        return mlcalib.quantize(model, **asked | options)

    return quantize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_has_the_same_codes_and_grids(quantize, dtype, tmp_path):
    quantized = quantize(dtype, format=ALL)
    for name in ALL:
        quantized.save(tmp_path / name, name)
        found = load_quantized(tmp_path / name)
        assert found.keys() == quantized.linears.keys()
        for layer, linear in quantized.linears.items():
            assert torch.equal(found[layer].codes, linear.codes)
            assert torch.equal(found[layer].grid.scale, linear.grid.scale)
            assert torch.equal(found[layer].grid.zero, linear.grid.zero)
    quantized.save(tmp_path / "default")  # the first of them
    assert mlcalib.check(tmp_path / "default").method == "compressed-tensors"


def test_a_format_that_holds_the_scales_need_not_be_asked_for(quantize, tmp_path):
    quantized = quantize(torch.bfloat16)  # fewer digits than float16 has
    quantized.save(tmp_path / "out", "gguf")
    assert len(load_quantized(tmp_path / "out")) == len(quantized.linears)


def test_scales_are_never_rounded_again(quantize, tmp_path):
    quantized = quantize(torch.float32)
    with pytest.raises(ValueError, match=r"float32 scales are not exact in .*float16.*format="):
        quantized.save(tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()
    quantized.save(tmp_path / "out", "dense")


def test_a_second_format_is_looked_at_before_anything_runs(quantize):
    with pytest.raises(ValueError, match="nf4"):
        quantize(torch.bfloat16, format=["compressed-tensors", "bitsandbytes"])
    with pytest.raises(ValueError, match=r"Unknown format 'guff'.*gguf"):
        quantize(torch.bfloat16, format=["compressed-tensors", "guff"])


def test_a_streamed_run_writes_one(tmp_path, tokenizer):
    with pytest.raises(TypeError, match=r"expected the name of one; mlcalib\.convert"):
        mlcalib.quantize_checkpoint("model", tmp_path / "out", method="rtn", format=ALL)
