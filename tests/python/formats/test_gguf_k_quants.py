"""K-quants and mixes: blocks by gguf's own dequantize, files by transformers' reader."""

import copy
import json

import gguf
import numpy as np
import pytest
import torch
from small_models import tiny_llama
from small_tokenizer import make_tokenizer
from test_packed_formats import same
from tiny_architectures import architectures, tiny_models
from transformers import AutoModelForCausalLM

import mlcalib
from mlcalib import _core
from mlcalib._core import GptqOptions, Grid, QuantizedLinear
from mlcalib.checkpoints import load_quantized
from mlcalib.common.gguf_types import MIXES, MixedModel
from mlcalib.formats import formats
from mlcalib.formats._gguf_blocks import GGUF_GRIDS, block_bytes

GGUF = formats.get("gguf")()
K_QUANTS = [kind for kind in GGUF_GRIDS if kind.endswith("_K")]
FIVE = ["Q5_0", "Q5_1"]


def fitted(kind, rows=5, columns=512, seed=0, solver=None):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1)
    if solver is None:
        return _core.rtn(weight, GGUF_GRIDS[kind])
    x = torch.randn(2 * columns, columns, generator=generator)
    return _core.gptq(weight, x.T @ x, GptqOptions(GGUF_GRIDS[kind], refit=1))


@pytest.mark.parametrize("solver", [None, "gptq"])
@pytest.mark.parametrize("kind", [*K_QUANTS, *FIVE])
def test_blocks_come_back_and_read_as_gguf_does(kind, solver):
    linear = fitted(kind, solver=solver)
    packed = GGUF.pack("a", linear)["a.weight"]
    quantization = gguf.GGMLQuantizationType[kind]
    assert packed.shape == gguf.quant_shape_to_byte_shape(linear.codes.shape, quantization)
    back = GGUF.unpack("a", {"a.weight": packed}, linear.grid.spec)
    assert same(back, linear)
    assert torch.equal(GGUF.pack("a", back)["a.weight"], packed)
    found = torch.from_numpy(gguf.dequantize(packed.numpy(), quantization))
    if kind == "Q5_1":  # whose minimum is rounded
        low = (linear.grid.scale * linear.grid.zero).repeat_interleave(32, 1)
        assert ((found - linear.dequantize()).abs() <= low * 2**-11 + 1e-6).all()
    else:
        assert torch.equal(found, linear.dequantize())


@pytest.mark.parametrize("kind", K_QUANTS)
def test_any_blocks_of_another_tool_keep_their_weights(kind):
    """Random bytes: scales and minima of 0, and of either sign, and numbers with few bits."""
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (40, 2 * block_bytes(kind)), dtype=np.uint8)
    blocks = raw.reshape(-1, block_bytes(kind))
    numbers = np.float16(generator.normal(size=(80, 2)) * 2.0 ** generator.integers(-9, 4, (80, 1)))
    start = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(kind, 0)
    count = 1 if kind in ("Q3_K", "Q6_K") else 2
    blocks[:, start : start + 2 * count] = numbers[:, :count].view(np.uint8)
    wanted = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    linear = GGUF.unpack("a", {"a.weight": torch.from_numpy(raw)}, GGUF_GRIDS[kind])
    assert torch.equal(linear.dequantize(), wanted)
    packed = GGUF.pack("a", linear)["a.weight"]  # with other codes of scales, where several fit
    again = torch.from_numpy(gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType[kind]))
    assert torch.equal(again, wanted)


def test_scales_that_a_super_block_does_not_hold_are_refused():
    linear = fitted("Q4_K")
    grid = Grid(linear.grid.scale * 1.01, linear.grid.zero, linear.grid.spec)
    with pytest.raises(ValueError, match="a: scales or minima are no multiples of one float16"):
        GGUF.pack("a", QuantizedLinear(linear.codes, grid))


def test_rows_that_are_no_whole_super_blocks_are_refused():
    with pytest.raises(ValueError, match=r"super_block 256 does not divide 320 input channels of"):
        GGUF.check({"a": GGUF_GRIDS["Q4_K"]}, {"a": (64, 320)})


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_other_formats_refuse_super_blocks(form):
    with pytest.raises(ValueError, match="holds no super-blocks, in which the scales of a lie"):
        formats.get(form)().check_numbers({"a": GGUF_GRIDS["Q4_K"]})


# ---- Mixes ----


def types(mix, columns=4096, **model):
    """The types of some linears, each with the layers that have them."""
    known = MixedModel(**{"architecture": "llama", "layers": 32, "heads": 32, "key_heads": 8,
                          **model})  # fmt: skip
    found = {}
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down"):
        for layer in range(known.layers):
            kind = known.type_of(mix, f"blk.{layer}.{part}.weight", columns)
            found.setdefault(part, {}).setdefault(kind, []).append(layer)
    return found


def test_mixes_are_those_of_llama_cpp():
    """Known of published files of Llama 3 8B, and of llama.cpp's source."""
    more = [*range(4), 6, 9, 12, 15, 18, 21, 24, 27, *range(28, 32)]
    found = types("Q4_K_M")
    assert found["attn_v"]["Q6_K"] == found["ffn_down"]["Q6_K"] == more
    assert set(found["attn_q"]) == set(found["attn_output"]) == set(found["ffn_gate"]) == {"Q4_K"}
    found = types("Q4_K_S")
    assert found["attn_v"] == found["ffn_down"]
    assert found["ffn_down"] == {"Q5_K": [0, 1, 2, 3], "Q4_K": list(range(4, 32))}
    found = types("Q3_K_M")
    assert found["attn_v"] == {"Q5_K": [0, 1], "Q4_K": list(range(2, 32))}
    assert found["ffn_down"] == {"Q5_K": [0, 1], "Q4_K": list(range(2, 32))}
    assert set(found["attn_output"]) == {"Q4_K"}
    found = types("Q2_K")
    assert [set(found[part]) for part in ("attn_v", "attn_output", "ffn_down", "ffn_gate")] == [
        {"Q4_K"}, {"Q3_K"}, {"Q3_K"}, {"Q2_K"}
    ]  # fmt: skip
    assert set(types("Q2_K", key_heads=32)["attn_v"]) == {"Q3_K"}
    assert set(types("Q3_K_S", layers=80)["attn_v"]) == {"Q5_K"}
    assert set(types("Q4_K_M", experts=8)["attn_k"]) == {"Q8_0"}
    assert set(types("Q6_K")["ffn_down"]) == {"Q6_K"}
    # Rows that 256 does not divide.
    assert set(types("Q4_K_M", 576)["attn_v"]) == {"Q8_0", "Q5_0"}
    assert set(types("Q5_K_S", 576)["attn_q"]) == {"Q5_1"}
    assert set(types("Q2_K", 576)["ffn_down"]) == {"Q4_0"}
    with pytest.raises(ValueError, match=r"output\.weight is in no block"):
        MixedModel("llama", 2, 4, 2).type_of("Q6_K", "output.weight", 256)


def stored_types(file):
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}


@torch.no_grad()
def logits(model):
    return model(torch.arange(8)[None] * 7 % 128).logits.float()


def model_of(hidden=256, intermediate=320, layers=2):
    return tiny_llama(vocabulary=400, hidden=hidden, intermediate=intermediate, layers=layers)


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K"])
def test_a_mix_is_written_and_read(mix, tmp_path):
    model, tokenizer = model_of(), make_tokenizer()
    quantized = mlcalib.quantize(
        model, scheme=mix, method="rtn", tokenizer=tokenizer, progress=False
    )
    quantized.save(tmp_path / "out")
    found = stored_types(tmp_path / "out/model.gguf")
    known = MixedModel("llama", 2, 4, 2)
    for name, kind in found.items():
        if name.startswith("blk.") and "norm" not in name:
            columns = 320 if "down" in name else 256
            assert kind == known.type_of(mix, name, columns)
    assert {kind for kind in found.values() if kind in GGUF_GRIDS} > {MIXES[mix]}  # and fallbacks
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    difference = (logits(loaded) - logits(quantized.model)).abs().max()
    assert difference < 0.02 if mix == "Q5_K_S" else difference == 0
    for name, linear in load_quantized(tmp_path / "out").items():
        assert torch.equal(linear.codes, quantized.linears[name].codes)
    assert mlcalib.check(tmp_path / "out").ok
    record = json.loads((tmp_path / "out/mlcalib.json").read_text())
    assert record["recipe"]["options"]["mix"] == mix
    card = (tmp_path / "out/README.md").read_text()
    assert f"- Weights: {mix} of llama.cpp, most of them" in card


def test_gptq_on_a_mix_is_better_than_rounding_and_runs_dequantized(tmp_path):
    model, tokenizer = model_of(256, 512), make_tokenizer()
    calibration = mlcalib.calibration(tokenizer, "en,sw", "sample", tokens=512, seq_len=64)
    found = {}
    for method in ("rtn", "gptq", "awq"):
        quantized = mlcalib.quantize(
            copy.deepcopy(model), calibration, scheme="Q3_K_M", method=method, tokenizer=tokenizer,
            progress=False,
        )  # fmt: skip
        found[method] = sum(sum(each.values()) for each in quantized.losses.values())
        quantized.save(tmp_path / method)
    assert found["gptq"] < 0.9 * found["rtn"]
    loaded = mlcalib.load(tmp_path / "gptq")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "gptq", gguf_file="model.gguf")
    assert (logits(loaded) - logits(expected)).abs().max() <= 1e-5 * logits(expected).abs().max()


def test_k_quants_are_converted_to_what_holds_them(tmp_path):
    model = model_of(intermediate=256)
    options = {**GGUF_GRIDS_OPTIONS, "format": "gguf", "method": "rtn"}
    mlcalib.quantize(model, tokenizer=make_tokenizer(), progress=False, **options).save(
        tmp_path / "out"
    )
    assert set(stored_types(tmp_path / "out/model.gguf").values()) == {"F32", "Q4_K"}
    mlcalib.convert(tmp_path / "out", tmp_path / "again", "gguf")
    first, second = load_quantized(tmp_path / "out"), load_quantized(tmp_path / "again")
    assert all(same(first[name], second[name]) for name in first)
    mlcalib.convert(tmp_path / "out", tmp_path / "dense", "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert torch.equal(logits(dense), logits(read))
    with pytest.raises(ValueError, match="holds no super-blocks"):
        mlcalib.convert(tmp_path / "out", tmp_path / "other", "compressed-tensors")


GGUF_GRIDS_OPTIONS = {
    "bits": 4, "group_size": 32, "symmetric": False, "super_block": 256, "scale_bits": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mix": "Q4_K_X"}, ValueError, "mix 'Q4_K_X'"),
        ({"mix": "Q4_K_M", "bits": 3}, ValueError, "most have bits 4, but bits 3 was given"),
        ({"mix": "Q4_K_M", "overrides": {"down": {"bits": 8}}}, ValueError, "leave overrides"),
        ({"scheme": "Q4_K_M", "format": "gptq"}, ValueError, "only the format 'gguf' holds"),
    ],
)
def test_what_contradicts_a_mix_is_refused(options, error, message):
    given = {"format": "gguf", **options}
    with pytest.raises(error, match=message):
        mlcalib.quantize(
            model_of(), method="rtn", tokenizer=make_tokenizer(), progress=False, **given
        )


def test_families_without_names_in_gguf_are_refused():
    made = (
        each
        for _, each in tiny_models("PersimmonForCausalLM", architectures()["PersimmonForCausalLM"])
    )
    model = next(each for each in made if isinstance(each, torch.nn.Module))
    with pytest.raises((NotImplementedError, ValueError), match=r"mix|super_block"):
        mlcalib.quantize(
            model, method="rtn", mix="Q4_K_M", format="dense", tokenizer=make_tokenizer(),
            progress=False,
        )  # fmt: skip
