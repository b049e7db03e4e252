"""Importance matrices against sums over activations, and files read as llama.cpp reads them."""

import struct

import gguf
import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from small_tokenizer import make_tokenizer
from tiny_architectures import architectures, tiny_models

import mlcalib
from mlcalib.calibration_sets import from_ids


def calibration(seq_len=32):
    generator = torch.Generator().manual_seed(0)
    ids = {
        code: torch.randint(128, (count, seq_len), generator=generator).tolist()
        for code, count in (("en", 3), ("sw", 2))
    }
    return from_ids(ids, seq_len=seq_len)


def inputs(model, path, calibration, language):
    """What a linear reads, [tokens, channels]."""
    seen = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda _, args, __: seen.append(args[0][0]))
    with torch.no_grad():
        for ids, _ in calibration.sequences(language):
            model(ids)
    handle.remove()
    return torch.cat(seen).double()


LINEARS = {
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj",
    "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj",
    "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj",
}


@pytest.mark.parametrize("weights", [None, {"en": 0.25, "sw": 2.0}, {"sw": 0.37}])
def test_entries_are_sums_over_the_activations(weights):
    model, text = tiny_llama(), calibration()
    entries = mlcalib.imatrix(model, text, progress=False).mix(weights)
    assert len(entries) == 2 * 7
    for tensor, path in LINEARS.items():
        used = weights or {"en": 1.0, "sw": 1.0}
        read = {code: inputs(model, path, text, code) for code in used}
        tokens = sum(weight * len(read[code]) for code, weight in used.items())
        entry = entries[tensor]
        assert entry.counts.tolist() == [round(tokens)]
        for found, power in ((entry.sums, 1), (entry.squares, 2)):
            expected = sum(weight * (read[code] ** power).sum(0) for code, weight in used.items())
            np.testing.assert_allclose(
                found[0] / entry.counts[0], expected / tokens, rtol=1e-4, atol=1e-5
            )


def test_a_gguf_file_is_laid_out_as_llama_imatrix_does(tmp_path):
    found = mlcalib.imatrix(tiny_llama(), calibration(), progress=False)
    found.save(tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    values = {field.name: field.contents() for field in reader.fields.values()}
    assert values["general.type"] == "imatrix"
    assert values["imatrix.chunk_count"] == 5
    assert values["imatrix.chunk_size"] == 32
    assert len(values["imatrix.datasets"]) == 1
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    entries = found.mix()
    assert len(tensors) == 3 * len(entries)
    for name, entry in entries.items():
        assert tensors[f"{name}.in_sum2"].shape.tolist() == [entry.squares.shape[1], 1]
        assert tensors[f"{name}.counts"].shape.tolist() == [1, 1]
        np.testing.assert_array_equal(tensors[f"{name}.in_sum2"].data, entry.squares)
        np.testing.assert_array_equal(tensors[f"{name}.in_sum"].data, entry.sums)
        assert tensors[f"{name}.counts"].data.item() == 160


def read_dat(path, chunk_size):
    """load_imatrix_legacy, tools/imatrix/imatrix.cpp: mean squares by tensor, and the data set."""
    data, at = path.read_bytes(), 0

    def integer():
        nonlocal at
        at += 4
        return struct.unpack_from("<i", data, at - 4)[0]

    def text():
        nonlocal at
        length = integer()
        at += length
        return data[at - length : at].decode()

    means = {}
    for _ in range(integer()):
        name, calls, size = text(), integer(), integer()
        values = np.frombuffer(data, "<f4", size, at)
        at += 4 * size
        means[name] = values * chunk_size / (calls * chunk_size)
    chunks, dataset = integer(), text()
    assert at == len(data)
    return means, chunks, dataset


def test_a_dat_file_gives_the_same_mean_squares(tmp_path):
    found = mlcalib.imatrix(tiny_llama(), calibration(), progress=False)
    found.save(tmp_path / "out.dat", {"en": 0.5, "sw": 1.0})
    means, chunks, dataset = read_dat(tmp_path / "out.dat", 32)
    entries = found.mix({"en": 0.5, "sw": 1.0})
    assert list(means) == sorted(entries)
    assert chunks == 4
    assert dataset
    for name, entry in entries.items():
        expected = entry.squares[0] / entry.counts[0]
        np.testing.assert_allclose(means[name], expected, rtol=1e-6)


def test_experts_are_one_tensor(tmp_path):
    found = mlcalib.imatrix(tiny_model("mixtral"), calibration(8), progress=False)
    entries = found.mix()
    gate, down = entries["blk.0.ffn_gate_exps.weight"], entries["blk.1.ffn_down_exps.weight"]
    assert gate.squares.shape == (4, 64)
    assert down.squares.shape == (4, 128)
    assert gate.counts.sum() == 2 * 40  # two experts for each token
    found.save(tmp_path / "out.gguf")
    found.save(tmp_path / "out.dat")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert tensors["blk.0.ffn_gate_exps.weight.counts"].shape.tolist() == [1, 4]
    means, _, _ = read_dat(tmp_path / "out.dat", 8)
    assert means["blk.0.ffn_gate_exps.weight"].shape == (256,)


def test_experts_that_no_token_reached_weigh_all_channels_alike(tmp_path):
    model = tiny_model("qwen2_moe")
    text = from_ids({"en": [[5] * 4]}, seq_len=4)
    found = mlcalib.imatrix(model, text, progress=False)
    entry = found.mix()["blk.1.ffn_gate_exps.weight"]
    unseen = entry.counts == 0
    assert unseen.any()
    assert not entry.squares[unseen].any()
    found.save(tmp_path / "out.dat")
    means, _, _ = read_dat(tmp_path / "out.dat", 4)
    rows = means["blk.1.ffn_gate_exps.weight"].reshape(12, -1)
    np.testing.assert_allclose(rows[unseen], 1.0)


def test_dense_blocks_that_llama_cpp_does_not_have_are_refused():
    with pytest.raises(NotImplementedError, match=r"layers\.0\.mlp\.gate_proj has no name"):
        mlcalib.imatrix(tiny_model("qwen3_moe"), calibration(8), progress=False)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"qwen3_moe"}))
def test_every_family_has_names(name):
    found = mlcalib.imatrix(tiny_model(name), calibration(8), progress=False)
    assert all(tensor.startswith("blk.") for tensor in found.statistics)
    assert {"blk.0.attn_q.weight", "blk.1.attn_output.weight"} <= set(found.statistics)


@pytest.mark.parametrize("weights", [{"fr": 1.0}, {"en": 0.0}, {"en": float("nan")}])
def test_strange_weights_are_refused(weights):
    found = mlcalib.imatrix(tiny_llama(), calibration(8), progress=False)
    with pytest.raises(ValueError, match="expected positive numbers for some of en, sw"):
        found.mix(weights)


def test_strange_layouts_are_refused(tmp_path):
    found = mlcalib.imatrix(tiny_llama(), calibration(8), progress=False)
    with pytest.raises(ValueError, match="'npz', expected 'gguf' or 'dat'"):
        found.save(tmp_path / "out", layout="npz")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_file(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mlcalib.cli import app

    model, tokenizer = tiny_llama(vocabulary=400), make_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["imatrix", str(tmp_path / "model"), "--out", str(tmp_path / "out.gguf")]
    arguments += ["--languages", "en:0.7,sw:0.3", "--tokens", "256", "--seq-len", "64"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "14 tensors written" in result.output
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert tensors["blk.0.attn_q.weight.counts"].data.item() == 256


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("FalconForCausalLM", {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        ("Gemma3ForConditionalGeneration", {"attn_q", "attn_k", "attn_v", "attn_output"}),
        ("GptOssForCausalLM", {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}),
        ("Lfm2ForCausalLM", {"attn_q", "ffn_gate", "ffn_up", "ffn_down"}),
        ("Phi3ForCausalLM", {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ],
)
def test_families_without_a_file_have_the_names_of_the_package_gguf(name, tensors):
    made = (each for _, each in tiny_models(name, architectures()[name]))
    model = next(each for each in made if isinstance(each, torch.nn.Module))
    found = mlcalib.imatrix(model, calibration(seq_len=16), progress=False).mix()
    assert tensors <= {each.split(".", 2)[2].removesuffix(".weight") for each in found}


@pytest.mark.filterwarnings("ignore")
def test_whole_files_of_others_are_refused_before_any_forward(monkeypatch):
    made = (
        each
        for _, each in tiny_models("PersimmonForCausalLM", architectures()["PersimmonForCausalLM"])
    )
    model = next(each for each in made if isinstance(each, torch.nn.Module))
    monkeypatch.setattr(mlcalib.quantization.propagation, "embed", None)
    with pytest.raises(
        NotImplementedError, match="GGUF files of PersimmonForCausalLM are not written"
    ):
        mlcalib.quantize(
            model,
            calibration(),
            tokenizer=make_tokenizer(),
            format="gguf",
            group_size=32,
            symmetric=True,
        )
