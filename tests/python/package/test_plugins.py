"""A family, a format and a quantizer, each one file of another package, from end to end."""

import importlib
import sys

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from plugin_files import entry_points, plugin_files
from small_models import tiny_model
from test_packed_formats import same

import mlcalib
from mlcalib._core import rtn
from mlcalib.checkpoints import load_quantized
from mlcalib.checkpoints.packed import PackedLinear
from mlcalib.cli import main
from mlcalib.formats import formats
from mlcalib.models import find_adapter
from mlcalib.quantizers import quantizers

OPTIONS = {"bits": 4, "group_size": 32, "symmetric": True}
OF_A_BLOCK = 6  # q, k, v, o, up, down


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Install a package of three files with its metadata; nothing of mlcalib is edited."""
    site = tmp_path / "site"
    (site / "mypackage").mkdir(parents=True)
    (site / "mypackage/__init__.py").write_text("")
    for name, content in plugin_files().items():
        if name.endswith(".py"):
            (site / "mypackage" / name).write_text(content)
    (site / "mypackage-1.dist-info").mkdir()
    (site / "mypackage-1.dist-info/METADATA").write_text("Name: mypackage\nVersion: 1\n")
    (site / "mypackage-1.dist-info/entry_points.txt").write_text(entry_points())
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


@pytest.fixture
def model():
    return tiny_model("arcee", vocabulary=400)


@pytest.fixture
def text(tokenizer):
    return mlcalib.calibration(tokenizer, "en:2,sw:1", "sample", tokens=200, seq_len=32)


@pytest.fixture
def quantized(model, text, tokenizer):
    return mlcalib.quantize(
        model, text, method="best-range", format="bytes", tokenizer=tokenizer, progress=False,
        **OPTIONS,
    )  # fmt: skip


def test_they_are_found_by_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mlcalib", "info"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    for name in ("best-range", "bytes", "ArceeForCausalLM"):
        assert name in told
    assert quantizers.get("best-range").__module__ == "mypackage.best_range"
    assert formats.get("bytes").__module__ == "mypackage.bytes_format"
    assert find_adapter("ArceeForCausalLM").blocks == "model.layers"


def test_the_quantizer_solved_each_linear(quantized, model, text):
    assert len(quantized.linears) == 2 * OF_A_BLOCK
    for name, each in quantized.linears.items():
        assert each.codes.max() <= 15
        assert each.codes.shape == model.get_submodule(name).weight.shape
    plain = mlcalib.quantize(
        model, text, method="rtn", tokenizer=quantized.tokenizer, progress=False, **OPTIONS
    )
    first = "model.layers.0.self_attn.q_proj"  # what both read is the same there
    assert sum(quantized.losses[first].values()) < sum(plain.losses[first].values())


def test_the_format_is_read_back_loaded_and_checked(quantized, tmp_path):
    folder = tmp_path / "out"
    quantized.save(folder, "bytes")
    read = load_quantized(folder)
    assert read.keys() == quantized.linears.keys()
    assert all(same(read[name], quantized.linears[name]) for name in read)

    loaded = mlcalib.load(folder)
    packed = [name for name, each in loaded.named_modules() if isinstance(each, PackedLinear)]
    assert set(packed) == quantized.linears.keys()
    ids = torch.arange(24)[None]
    with torch.no_grad():
        expected = quantized.model(ids).logits
        assert (loaded(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()

    report = mlcalib.check(folder)
    assert report.ok
    assert report.findings == ()
    assert (report.method, report.linears) == ("bytes", len(read))
    assert report.readers["vLLM"].loads is None  # the file says nothing of readers


def test_the_card_speaks_of_all_three(quantized, tmp_path):
    quantized.save(tmp_path / "out", "bytes")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.tags == ["mlcalib", "best-range", "4-bit", "bytes"]
    for part in ("- Stored: a byte for each code", 'mlcalib.load("THIS_FOLDER")', "best-range of"):
        assert part in card.text


def test_from_pretrained_keeps_it_packed(quantized, tmp_path, registered):
    from transformers import AutoModelForCausalLM

    quantized.save(tmp_path / "out", "bytes")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(loaded.model.layers[0].mlp.up_proj, PackedLinear)


def test_the_command_streams_and_converts(model, tokenizer, tmp_path, monkeypatch, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mlcalib", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, capsys.readouterr()

    run(
        "quantize", tmp_path / "model", "--method", "best-range", "--format", "bytes", "--bits", 4,
        "--group-size", 32, "--symmetric", "--languages", "en", "--corpus", "sample", "--tokens",
        64, "--seq-len", 32, "--option", "ranges=minmax", "--out", tmp_path / "out",
    )  # fmt: skip
    run("convert", tmp_path / "out", tmp_path / "same", "--format", "compressed-tensors")
    found, converted = load_quantized(tmp_path / "out"), load_quantized(tmp_path / "same")
    weight = model.model.layers[0].self_attn.q_proj.weight.detach()
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(found[name].codes, rtn(weight, found[name].grid.spec).codes)
    assert all(torch.equal(found[each].codes, converted[each].codes) for each in found)


def test_the_family_is_scaled_and_written_as_gguf(model, text, tokenizer, tmp_path):
    quantized = mlcalib.quantize(
        model, text, method="awq", format="gguf", tokenizer=tokenizer, progress=False, **OPTIONS
    )
    assert len(quantized.scales) == 2 * len(find_adapter("ArceeForCausalLM").scale_groups)
    quantized.save(tmp_path / "out", "gguf")
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    assert reader.fields["general.architecture"].contents() == "arcee"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * (OF_A_BLOCK + 2) + 3  # two norms; embedding, norm and head

    def values(name):
        return gguf.dequantize(tensors[name].data, tensors[name].tensor_type)

    up = quantized.linears["model.layers.1.mlp.up_proj"].dequantize()
    np.testing.assert_array_equal(values("blk.1.ffn_up.weight"), up)
    query = quantized.linears["model.layers.0.self_attn.q_proj"].dequantize()
    pairs = query.reshape(4, 2, -1, 64).transpose(1, 2).reshape(query.shape)  # as Llama's files
    np.testing.assert_array_equal(values("blk.0.attn_q.weight"), pairs)
    assert mlcalib.check(tmp_path / "out").ok

    importance = mlcalib.imatrix(model, text, progress=False)
    assert len(importance.mix()) == 2 * OF_A_BLOCK


def test_an_entry_point_that_is_no_adapter_is_named(tmp_path):
    points = tmp_path / "site/mypackage-1.dist-info/entry_points.txt"
    points.write_text("[mlcalib.families]\narcee = mypackage.best_range:BestRange\n")
    with pytest.raises(TypeError, match=r"'arcee' of the group 'mlcalib.families'.*an Adapter"):
        find_adapter("ArceeForCausalLM")
