"""GGUF: blocks by gguf's own dequantize, files by transformers' own reader."""

import copy

import core_data  # noqa: F401 (its hypothesis profile)
import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import tiny_llama, tiny_model
from small_tokenizer import make_tokenizer
from test_checkpoints import quantize
from test_formats import random_linear
from test_packed_formats import same
from transformers import AutoModelForCausalLM

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.checkpoints import save_checkpoint
from mlcalib.formats import formats
from mlcalib.formats.gguf import block_type

GGUF = formats.get("gguf")()
HALF = torch.float16
SPECS = {
    kind: GridSpec(bits, 32, symmetric, scale_dtype=HALF)
    for kind, bits, symmetric in (("Q4_0", 4, True), ("Q4_1", 4, False), ("Q8_0", 8, True))
}


@st.composite
def linears(draw):
    spec = SPECS[draw(st.sampled_from(sorted(SPECS)))]
    rows, blocks = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    return random_linear(spec, rows, 32 * blocks, seed=draw(st.integers(0, 99)))


@given(linears())
def test_blocks_come_back_and_read_as_gguf_does(linear):
    spec = linear.grid.spec
    tensors = GGUF.pack("a", linear)
    assert same(GGUF.unpack("a", tensors, spec), linear)
    kind = gguf.GGMLQuantizationType[block_type(spec)]
    found = torch.from_numpy(gguf.dequantize(tensors["a.weight"].numpy(), kind))
    expected = linear.dequantize()
    if spec.symmetric:
        assert torch.equal(found, expected)
    else:
        low = (linear.grid.scale * linear.grid.zero).repeat_interleave(32, 1)
        assert ((found - expected).abs() <= low * 2**-11 + 1e-6).all()


@given(st.sampled_from(["Q4_0", "Q8_0"]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_blocks_of_another_tool_come_back_byte_by_byte(kind, rows, blocks, seed):
    """Any codes, and scales of either sign: gguf's largest weight of a block has code 0."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(rows, 32 * blocks)).astype(np.float32)
    found = torch.from_numpy(gguf.quantize(weight, gguf.GGMLQuantizationType[kind]))
    linear = GGUF.unpack("a", {"a.weight": found}, SPECS[kind])
    assert torch.equal(GGUF.pack("a", linear)["a.weight"], found)
    values = gguf.dequantize(found.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(linear.dequantize(), torch.from_numpy(values))


def test_a_minimum_of_another_tool_is_refused():
    tensors = GGUF.pack("a", random_linear(SPECS["Q4_1"], 4, 64))
    blocks = torch.from_numpy(
        gguf.quantize(np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32),
                      gguf.GGMLQuantizationType.Q4_1)
    )  # fmt: skip
    assert blocks.shape == tensors["a.weight"].shape
    with pytest.raises(ValueError, match="no multiple of its scale"):
        GGUF.unpack("a", {"a.weight": blocks}, SPECS["Q4_1"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GridSpec(4, 64, True), "group_size 64"),
        (GridSpec(8, 32, False), "8 bits, group_size 32, asymmetric"),
        (GridSpec(3, 32, True), "given 3 bits"),
    ],
)
def test_other_grids_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        GGUF.check({"a": spec}, {"a": (64, 64)})


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match=r"does not divide 48 input channels of a; use 16, 24"):
        GGUF.check({"a": SPECS["Q4_0"]}, {"a": (64, 48)})


def test_what_float16_cannot_hold_is_refused():
    spec = SPECS["Q4_1"]
    zero = torch.full((2, 1), 15, dtype=torch.uint8)
    linear = QuantizedLinear(
        torch.ones(2, 32, dtype=torch.uint8), Grid(torch.full((2, 1), 60000.0), zero, spec)
    )
    with pytest.raises(ValueError, match="minimum of a block is not finite"):
        GGUF.pack("a", linear)
    other = GridSpec(4, 32, True, scale_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="float16 scales"):
        GGUF.pack("a", random_linear(other, 2, 32))


def small(name, dtype=torch.float32, **options):
    """A model whose embedding has rows for all of the small tokenizer's tokens, and some more."""
    if name == "llama":
        return tiny_llama(vocabulary=400, dtype=dtype, **options)
    model = tiny_model(name, vocabulary=400, dtype=dtype)
    if name == "qwen2":  # full attention in every block
        model.config.use_sliding_window = False
        model.config.sliding_window = None
        model.config.layer_types = ["full_attention"] * 2
        model = type(model)(model.config).to(dtype).eval()
    return model


def written(model, kind, folder, tokenizer=None, leave_out=("lm_head",)):
    quantized = quantize(model, SPECS[kind], leave_out=leave_out)
    save_checkpoint(model, tokenizer or make_tokenizer(), folder, GGUF, quantized, {"a": 1})
    model = copy.deepcopy(model)
    for name, linear in quantized.items():
        weight = model.get_submodule(name).weight
        weight.data = linear.dequantize().to(weight.dtype)
    return model


@torch.no_grad()
def logits(model, length=8):
    return model(torch.arange(length)[None] * 7 % 128).logits.float()


@pytest.mark.parametrize("kind", sorted(SPECS))
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_transformers_computes_the_same_logits(name, kind, tmp_path):
    expected = written(small(name), kind, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    difference = (logits(loaded) - logits(expected)).abs().max()
    assert difference < 0.02 if kind == "Q4_1" else difference == 0


@pytest.mark.parametrize("tied", [False, True])
def test_heads_are_tied_as_the_model_ties_them(tied, tmp_path):
    expected = written(small("llama", tied=tied), "Q4_0", tmp_path / "out")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert ("output.weight" in names) != tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert torch.equal(logits(loaded), logits(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_tensors_keep_their_dtype(dtype, tmp_path):
    written(small("llama", dtype), "Q8_0", tmp_path / "out")
    types = {
        t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors
    }
    assert types["token_embd.weight"] == {torch.bfloat16: "BF16", HALF: "F16"}[dtype]
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.1.ffn_down.weight"] == "Q8_0"
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"model.gguf", "mlcalib.json"}


def test_biases_of_q_and_k_are_ordered_like_their_weights(tmp_path):
    """transformers' reader forgets attention_bias; llama.cpp's order is that of its permute."""
    model = small("llama-bias")
    written(model, "Q4_0", tmp_path / "out")
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    bias = model.model.layers[0].self_attn.k_proj.bias.detach()
    expected = bias.reshape(2, 2, 4).swapaxes(1, 2).reshape(-1)  # heads, halves, pairs
    assert torch.equal(torch.from_numpy(found["blk.0.attn_k.bias"].copy()), expected)


def values(path):
    return {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}


def test_hyperparameters(tmp_path):
    model = small("qwen3")
    written(model, "Q4_0", tmp_path / "qwen3")
    found = values(tmp_path / "qwen3/model.gguf")
    assert found["general.architecture"] == "qwen3"
    assert found["qwen3.attention.key_length"] == 32
    assert found["qwen3.attention.head_count_kv"] == 2
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    written(small("mistral"), "Q4_0", tmp_path / "mistral")
    found = values(tmp_path / "mistral/model.gguf")
    assert (found["general.architecture"], found["llama.context_length"]) == ("llama", 8)


def test_llama_3_rope_factors_are_those_of_transformers(tmp_path):
    model = small("llama")
    rope = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    model.config.rope_parameters = rope
    model = type(model)(model.config).eval()
    written(model, "Q4_0", tmp_path / "out")
    (factors,) = (
        torch.from_numpy(t.data.copy())
        for t in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors
        if t.name == "rope_freqs.weight"
    )
    plain = 500.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq)
    assert factors.max() == 8
    assert factors.min() == 1
