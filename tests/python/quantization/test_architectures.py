"""Every architecture: quantized, saved, and read by transformers itself."""

import copy

import pytest
import torch
from foreign_reader import from_transformers
from small_models import ARCHITECTURES, tiny_model

import mlcalib
from mlcalib.checkpoints import load_quantized

IDS = torch.arange(48)[None] * 7 % 128
TEXT = {
    "en": [[(7 * i + j * j) % 128 for j in range(80)] for i in range(3)],
    "sw": [[(11 * i + 5 * j) % 128 for j in range(50)] for i in range(2)],
}
METHODS = {
    "rtn": {},
    "gptq": {},
    "awq": {},
    "awq block": {"objective": "block", "points": 3},
}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def assert_same_logits(loaded, quantized):
    """Bit for bit, with experts in turn; transformers' own choice, grouped_mm, sums otherwise."""
    if hasattr(loaded.config, "num_experts_per_tok"):
        loaded.set_experts_implementation("eager")
    assert torch.equal(logits(loaded), logits(quantized.model))


@pytest.fixture
def quantize(tokenizer):
    def quantize(model, **options):
        calibration = mlcalib.calibration(None, corpus=TEXT, seq_len=32)
        options = {"group_size": 32, "progress": False, **options}
        return mlcalib.quantize(model, calibration, tokenizer=tokenizer, **options)

    return quantize


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_computes_the_same_logits(quantize, tmp_path, name, method):
    model = tiny_model(name)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    symmetric = "experts" in repr(model)  # asymmetric experts cannot be loaded: test_experts.py
    name, options = method.partition(" ")[0], METHODS[method]
    quantized = quantize(model, method=name, symmetric=symmetric, **options)
    quantized.save(tmp_path / "out")
    loaded = from_transformers(tmp_path / "out")
    assert_same_logits(loaded, quantized)
    assert not torch.equal(logits(loaded), before)
    assert torch.equal(logits(model), before)  # the caller's model is as it was
    assert all(map(torch.equal, model.state_dict().values(), weights.values()))
    assert len(load_quantized(tmp_path / "out")) == len(quantized.linears)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_checkpoints_too(quantize, tmp_path, name, dtype):
    quantized = quantize(tiny_model(name, dtype=dtype), method="rtn", bits=3, format="dense")
    quantized.save(tmp_path / "out", "dense")
    loaded = from_transformers(tmp_path / "out")
    assert loaded.dtype == dtype
    # grouped_mm rounds to bfloat16 in other places, and sums in another order on more threads.
    bound = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(logits(loaded), logits(quantized.model), rtol=bound, atol=bound)
    assert_same_logits(loaded, quantized)


@pytest.mark.parametrize("name", ["cohere2", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("bits", [4, 8])
def test_whole_rows_in_bfloat16(quantize, tmp_path, name, bits):
    model = tiny_model(name, dtype=torch.bfloat16)
    quantized = quantize(model, method="rtn", bits=bits, group_size=-1, symmetric=True)
    quantized.save(tmp_path / "out")
    loaded = from_transformers(tmp_path / "out")
    assert_same_logits(loaded, quantized)


@pytest.mark.parametrize("name", ["gemma2", "mixtral", "qwen2_moe"])
def test_from_a_folder_with_float_propagation(quantize, tmp_path, name):
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "in")
    quantized = quantize(str(tmp_path / "in"), symmetric=True, propagate="float")
    quantized.save(tmp_path / "out")
    loaded = from_transformers(tmp_path / "out")
    assert_same_logits(loaded, quantized)
    again = quantize(model, symmetric=True, propagate="float")
    assert torch.equal(logits(again.model), logits(quantized.model))
    other = quantize(model, symmetric=True, propagate="quantized")
    assert not torch.equal(logits(other.model), logits(quantized.model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_of_every_block_is_quantized_and_nothing_else(quantize, name):
    quantized = quantize(tiny_model(name), method="rtn", format="dense")
    inside = {
        name
        for name, module in quantized.model.model.layers.named_modules(prefix="model.layers")
        if isinstance(module, torch.nn.Linear) and not name.endswith("shared_expert_gate")
    }
    assert set(quantized.linears) == inside
