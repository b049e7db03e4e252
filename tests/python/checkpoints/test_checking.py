"""Damaged checkpoints: each is named, none crashes, none takes much memory."""

import json
import resource
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import tiny_llama, tiny_model
from test_conversion import saved

import mlcalib
from mlcalib._core import GridSpec

HALF = torch.float16
FORMS = ["compressed-tensors", "gptq", "awq"]
SPEC = GridSpec(4, 32, True, scale_dtype=HALF)
NAME = "model.layers.0.mlp.down_proj"


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "in", "gptq", SPEC)
    return tmp_path / "in"


def edit(folder, section=False, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config["quantization_config"] if section else config).update(changes)
    path.write_text(json.dumps(config))


def change(folder, **tensors):
    """Replace tensors, or with None remove them; names with _ for the last dot."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in tensors.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, path, {"format": "pt"})


def kinds(folder):
    """Return kind → messages, joined."""
    found = {}
    for each in mlcalib.check(folder).findings:
        found.setdefault(each.kind, []).append(each.message)
    return {kind: "\n".join(messages) for kind, messages in found.items()}


def errors(folder):
    report = mlcalib.check(folder)
    assert not report.ok
    assert all(verdict.loads is False for verdict in report.readers.values())
    return "\n".join(finding.message for finding in report.findings)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_mlcalib_writes_is_whole(form, symmetric, tmp_path):
    spec = GridSpec(4, 32, symmetric, scale_dtype=HALF)
    saved(tmp_path / "in", form, spec)
    report = mlcalib.check(tmp_path / "in")
    assert {each.kind for each in report.findings} <= {"refused"}
    assert report.status == (0 if symmetric or form != "gptq" else 4)
    assert report.notes == ()
    assert report.linears == 14
    assert report.readers["transformers"].loads
    assert report.readers["vLLM"].loads == (symmetric or form != "gptq")
    assert not report.readers["llama.cpp"].loads


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "cohere", "mixtral"])
def test_families_are_whole(name, tmp_path):
    model = tiny_model(name, dtype=HALF)
    if name == "mixtral":
        model.save_pretrained(tmp_path / "in")
    else:
        saved(tmp_path / "in", "gptq", SPEC, model)
    assert mlcalib.check(tmp_path / "in").findings == ()


def test_an_ordinary_checkpoint_is_whole(tmp_path):
    tiny_llama(tied=True).save_pretrained(tmp_path)
    report = mlcalib.check(tmp_path)
    assert report.findings == ()
    assert report.method == ""
    assert report.readers["vLLM"].loads


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "the file has" in errors(folder)


def test_a_header_that_lies_about_its_length(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**62) + data[8:])
    assert f"a header of {2**62} bytes" in errors(folder)


def test_swapped_shards(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert mlcalib.check(folder).ok
    (folder / "a.safetensors").rename(folder / "c")
    (folder / "b.safetensors").rename(folder / "a.safetensors")
    (folder / "c").rename(folder / "b.safetensors")
    assert "a.safetensors lacks" in errors(folder)


@pytest.mark.parametrize(("written_as", "labelled"), [("gptq-v2", "gptq"), ("gptq", "gptq_v2")])
def test_zero_points_of_the_wrong_version(written_as, labelled, tmp_path):
    saved(tmp_path / "in", written_as, SPEC)
    edit(tmp_path / "in", section=True, checkpoint_format=labelled)
    assert "is checkpoint_format wrong?" in errors(tmp_path / "in")


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_shape(form, tmp_path):
    saved(tmp_path / "in", form, SPEC)
    scale = {"compressed-tensors": "weight_scale"}.get(form, "scales")
    change(tmp_path / "in", **{f"{NAME}.{scale}": torch.ones(3, 5, dtype=HALF)})
    assert f"{NAME}.{scale} is torch.float16 [3, 5]" in errors(tmp_path / "in")


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_another_size(form, tmp_path):
    saved(tmp_path / "in", form, SPEC)
    edit(tmp_path / "in", hidden_size=96, intermediate_size=160)
    found = errors(tmp_path / "in")
    assert "model.embed_tokens.weight has shape [128, 64], but config.json says [128, 96]" in found
    assert "config.json says 160" in found or "config.json says [160, 96]" in found


@pytest.mark.parametrize("form", FORMS)
def test_missing_scales(form, tmp_path):
    saved(tmp_path / "in", form, SPEC)
    scale = {"compressed-tensors": "weight_scale"}.get(form, "scales")
    change(tmp_path / "in", **{f"{NAME}.{scale}": None})
    assert f"no tensor {NAME}.{scale}" in errors(tmp_path / "in")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [24, 64, 31])
def test_an_odd_group(form, size, tmp_path):
    saved(tmp_path / "in", form, SPEC)
    if form == "compressed-tensors":
        groups = json.loads((tmp_path / "in/config.json").read_text())["quantization_config"]
        groups["config_groups"]["group_0"]["weights"]["group_size"] = size
        edit(tmp_path / "in", quantization_config=groups)
    else:
        edit(tmp_path / "in", section=True, group_size=size)
    found = errors(tmp_path / "in")
    assert f"group_size {size} does not divide" in found or "ask for" in found


def test_a_head_that_its_config_loses(folder, tmp_path):
    edit(folder, tie_word_embeddings=True)
    assert "readers would lose the head" in errors(folder)
    saved(tmp_path / "other", "gptq", SPEC, tiny_llama(dtype=HALF, tied=True))
    assert mlcalib.check(tmp_path / "other").ok
    edit(tmp_path / "other", tie_word_embeddings=False)
    assert "start it at random" in errors(tmp_path / "other")
    saved(tmp_path / "head", "gptq", SPEC, leave_out=())
    edit(tmp_path / "head", tie_word_embeddings=True)
    assert "lm_head is quantized" in errors(tmp_path / "head")


def test_unknown_keys(folder, tmp_path):
    edit(folder, section=True, group_sise=32)
    report = mlcalib.check(folder)
    assert report.ok
    assert report.findings == ()
    assert "do not know: group_sise" in report.notes[0]
    saved(tmp_path / "ct", "compressed-tensors", SPEC)
    section = json.loads((tmp_path / "ct/config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["weights"]["bitz"] = 4
    edit(tmp_path / "ct", quantization_config=section)
    assert "bitz" in kinds(tmp_path / "ct")["refused"]
    readers = mlcalib.check(tmp_path / "ct").readers
    assert not any(verdict.loads for verdict in readers.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers 1000000000000; expected"),
        ({"hidden_size": -4}, "hidden_size -4"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"num_attention_heads": True}, "num_attention_heads True"),
        ({"num_hidden_layers": 3}, "3 layers, but layer 2 has no tensors"),
        ({"num_hidden_layers": 1}, "1 layers, but there are tensors of layer 1"),
        ({"architectures": 3}, "architectures 3"),
        ({"dtype": "int4"}, "dtype 'int4'"),
        ({"transformers_weights": "x.bin"}, "redirects to other weights"),
        ({"quantization_config": []}, "no quant_method"),
    ],
)
def test_absurd_config_values(folder, changes, message):
    edit(folder, **changes)
    assert message in errors(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 10**9}, "bits 1000000000"),
        ({"bits": "4"}, "bits '4'"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": 10**15}, "group_size 1000000000000000"),
        ({"sym": None}, "sym None; vLLM needs true or false"),
    ],
)
def test_absurd_quantization_values(folder, changes, message):
    edit(folder, section=True, **changes)
    assert message in errors(folder)


def test_values_that_are_not_finite(folder):
    state = load_file(folder / "model.safetensors")
    scales = state[f"{NAME}.scales"].clone()
    scales[0, 0] = float("nan")
    change(folder, **{f"{NAME}.scales": scales})
    assert f"{NAME} has scales that are not finite" in errors(folder)


def test_linears_that_readers_fuse_on_different_grids(tmp_path):
    """QKVParallelLinear and MergedColumnParallelLinear of vLLM have one scheme each."""
    up = "model.layers.1.mlp.up_proj"
    saved(tmp_path / "in", "gptq", SPEC, leave_out=("lm_head", up))
    report = mlcalib.check(tmp_path / "in")
    assert report.ok
    (finding,) = report.findings
    assert "model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj are fused" in finding.message
    assert [verdict.loads for verdict in report.readers.values()] == [True, False, False, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{" * 100_000, "cannot be read as JSON"), (b"[1]", "JSON list"), (b"\xff\xfe", "cannot")],
)
def test_a_config_that_is_none(folder, content, message):
    (folder / "config.json").write_bytes(content)
    assert message in errors(folder)


def test_a_huge_config_is_not_read(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**33)  # a hole
    assert "a config has a few thousand" in errors(folder)


def test_pickles_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    assert "a pickle, which can run code" in kinds(folder)["unread"]


def test_nothing_there(tmp_path):
    assert "neither a folder nor" in errors(tmp_path / "none")
    assert "no config.json" in errors(tmp_path)


def test_other_methods_are_not_looked_at(folder):
    edit(folder, quantization_config={"quant_method": "quanto"})
    report = mlcalib.check(folder)
    assert (report.ok, report.status) == (True, 3)
    assert "'quanto'" in report.text()
    assert "vLLM may load it" in report.text()


def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    model = tiny_llama(dtype=HALF, hidden=512, intermediate=2048, layers=8)
    saved(tmp_path / "in", "gptq", SPEC, model)
    del model
    mlcalib.check(tmp_path / "in")  # what is imported on the way
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mlcalib.check(tmp_path / "in")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16 * 1024  # KiB; the checkpoint has 16 MB of codes


def test_the_command_ends_by_what_it_found(folder):
    from typer.testing import CliRunner

    from mlcalib.cli import app

    def run():
        result = CliRunner().invoke(app, ["check", str(folder)])
        return result.exit_code, result.output

    assert run()[0] == 0
    assert "no errors" in run()[1]
    edit(folder, architectures=None)
    assert run()[0] == 4
    assert "refused: vLLM, SGLang: config.json has architectures None" in run()[1]
    edit(folder, section=True, checkpoint_format="marlin")
    assert run()[0] == 3
    assert "mlcalib cannot read it: checkpoint_format 'marlin'" in run()[1]
    edit(folder, hidden_size=-4)
    assert run()[0] == 1
    assert "damaged: config.json" in run()[1]
