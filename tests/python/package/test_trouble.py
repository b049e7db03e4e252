"""Inputs that once went wrong, each through the command or function that a user would call.

The inputs are those of ``../shared/trouble``, whose README says of each line what went wrong and
what is right; where that folder is missing, nothing is tested.
"""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_tokenizer import make_tokenizer

import mlcalib
from mlcalib import _core
from mlcalib.checkpoints import load_quantized
from mlcalib.cli import main

MAKE = Path(__file__).parents[4] / "shared" / "trouble" / "make_inputs.py"
pytestmark = pytest.mark.skipif(not MAKE.is_file(), reason="needs ../shared/trouble")

RTN = ("--method", "rtn", "--group-size", 32)
GPTQ = ("--group-size", 32, "--languages", "en", "--tokens", 64, "--seq-len", 32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    out = tmp_path_factory.mktemp("trouble")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [str(MAKE), str(out)])
        runpy.run_path(str(MAKE))
    return out


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, capsys, caplog):
    """Run a command; returns the exit status and all that it says."""

    def run(*args):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["mlcalib", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out + said.err + caplog.text

    return run


@pytest.fixture
def quantized(run, tmp_path):
    """Quantize a folder; returns the output folder."""

    def quantized(folder, *options, out="out"):
        shutil.rmtree(tmp_path / out, ignore_errors=True)
        status, said = run("quantize", folder, "--out", tmp_path / out, *options)
        assert status == 0, said
        return tmp_path / out

    return quantized


@pytest.fixture
def refused(run, tmp_path):
    """Quantize a folder in vain: nothing is left, and the message matches."""

    def refused(folder, message, *options):
        status, said = run("quantize", folder, "--out", tmp_path / "no", *options)
        assert status == 1
        assert re.search(message, " ".join(said.split())), said
        assert not (tmp_path / "no").exists()
        assert not (tmp_path / ".no.parts").exists()

    return refused


@pytest.fixture
def text(run, inputs, tmp_path):
    """Quantize ``v4`` with text of the inputs; returns what the command says."""

    def text(name, *options, language="en", tokens=64, model="v4"):
        shutil.rmtree(tmp_path / "text", ignore_errors=True)
        return run(
            *("quantize", inputs / model, "--out", tmp_path / "text", *GPTQ[:2]),
            *("--languages", language, "--corpus", f"files:{inputs / 'text' / name}"),
            *("--tokens", tokens, "--seq-len", 32, *options),
        )

    return text


def tensors(folder):
    return load_file(folder / "model.safetensors")


def config(folder):
    return json.loads((folder / "config.json").read_text())


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", ["fp8-block", "fp8-channel", "int8"])
def test_codes_are_read_as_what_they_stand_for(name, inputs, quantized, tmp_path):
    source = inputs / name
    if name == "int8":
        source = quantized(
            inputs / "v4", "--method", "rtn", "--bits", 8, "--group-size", -1, "--symmetric",
            "--format", "compressed-tensors-int8", out="int8",
        )  # fmt: skip
    held, exact = tensors(source), {}
    for key, value in held.items():
        scale = next((held[s] for s in (f"{key}_scale_inv", f"{key}_scale") if s in held), None)
        if "scale" not in key:
            exact[key] = value if scale is None else value.float() * scale
    plain = shutil.copytree(inputs / "v4", tmp_path / "plain")
    save_file(exact, plain / "model.safetensors", {"format": "pt"})
    wanted = tensors(quantized(plain, *RTN, "--format", "dense", out="wanted"))
    assert same(tensors(quantized(source, *RTN, "--format", "dense")), wanted)


def test_a_head_of_its_own_is_kept(inputs, run, quantized, tmp_path):
    source = inputs / "tied-but-not"
    head = tensors(source)["lm_head.weight"]
    out = quantized(source, *RTN, "--format", "dense")
    mlcalib.quantize(source, method="rtn", group_size=32, format="dense", progress=False).save(
        tmp_path / "api"
    )
    for folder in (out, tmp_path / "api"):
        assert torch.equal(tensors(folder)["lm_head.weight"], head)
        assert config(folder)["tie_word_embeddings"] is False
    status, said = run("check", source)
    assert (status, "readers would lose the head" in said) == (1, True)
    rows = mlcalib.evaluate([str(source), str(out)], "en", tokens=64, seq_len=32, dtype="float32")
    losses = {row.model: row.value for row in rows if row.metric == "token_loss"}
    assert losses[str(source)] == pytest.approx(losses[str(out)], abs=0.2)


def test_config_and_tokenizer_keep_their_own_words(inputs, quantized):
    source, out = inputs / "v4", quantized(inputs / "v4", *RTN)
    made = config(out)
    assert made.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert made == config(source)
    assert made["rope_theta"] == 500000.0
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_layers_for_multi_token_prediction_are_copied(inputs, run, quantized):
    source = inputs / "mtp"
    out, kept = quantized(source, *RTN), "model.layers.2.eh_proj.weight"
    assert torch.equal(tensors(out)[kept], tensors(source)[kept])
    assert config(out)["num_nextn_predict_layers"] == 1
    status, said = run("check", source)
    assert (status, "multi-token prediction" in said) == (0, True)


def test_a_token_without_an_embedding_is_named(inputs, refused, text):
    status, said = text("copies", "--separator", "eos", model="eos-outside")
    assert status == 1
    assert re.search(r"token 4\d\d \('<\|im_end\|>'\).* 400 rows", " ".join(said.split()))
    refused(inputs / "eos-outside", "im_end", *RTN, "--format", "gguf", "--symmetric")


@pytest.mark.parametrize("name", ["nfkc", "lower"])
def test_normalizers_that_llama_cpp_lacks_are_refused(name, inputs, refused):
    refused(inputs / name, "changes text", *RTN, "--format", "gguf", "--symmetric")


def test_three_verdicts(inputs, run, quantized):
    status, said = run("check", inputs / "sizes-vary")
    assert (status, "gate_proj.weight is [128, 64]" in said) == (3, True)
    status, said = run("check", inputs / "doubled-q")
    assert (status, "damaged" in said) == (3, False)
    out = quantized(inputs / "v4", *RTN, "--symmetric", "--format", "gptq")
    made = config(out)
    section = made.pop("quantization_config")
    (out / "config.json").write_text(json.dumps(made))
    (out / "quantize_config.json").write_text(json.dumps(section))
    status, said = run("check", out)
    assert (status, "14 quantized linears" in said) == (4, True)
    (out / "config.json").write_text(
        json.dumps(made | {"quantization_config": section | {"desc_act": True}})
    )
    held = tensors(out)
    for key in [key for key in held if key.endswith("g_idx")]:
        held[key] = held[key].flip(0).contiguous()
    held["model.layers.0.mlp.up_proj.g_idx"] = held["model.layers.0.mlp.up_proj.g_idx"].roll(1)
    save_file(held, out / "model.safetensors", {"format": "pt"})
    status, said = run("check", out)
    assert (status, "damaged" in said) == (3, False)


def test_sizes_that_vary_are_refused_with_the_tensor(inputs, refused):
    message = r"intermediate_size \[128, 128\].*model.layers.0.mlp.gate_proj.weight is \[128, 64\]"
    refused(inputs / "sizes-vary", message, *RTN)


def test_every_window_begins_with_bos(inputs, text, tmp_path):
    spec = f"files:{inputs / 'text' / 'one-document'}"
    made = mlcalib.calibration(inputs / "v4", "en", spec, tokens=320, seq_len=32)
    assert made.ids["en"][:, 0].eq(0).all()
    assert text("one-document")[0] == 0
    record = json.loads((tmp_path / "text" / "mlcalib.json").read_text())
    assert record["calibration"]["windows"] == "bos <s>"


def test_only_as_much_is_tokenised_as_is_needed(inputs):
    spec = f"files:{inputs / 'text' / 'one-document'}"
    made = mlcalib.calibration(inputs / "v4", "en", spec, tokens=1024, seq_len=128)
    assert made.report["en"].cut < 100_000  # of about ten million


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("two-files", 1, r"Too little text.* not read \(calib.jsonl\)"),
        ("gz", 1, r"calib.jsonl.gz is not a readable .gz file"),
        ("upper", 0, r"en +64 +64"),
        ("surrogate", 0, r"left out of 301 read: 1 documents that are not valid Unicode"),
        ("form-feed", 0, r"hold over 90% of the text .* form feeds separate documents"),
        ("copies", 0, r"\d of \d documents repeat another"),
        ("q?x", 0, r"en +64 +64"),
    ],
)
def test_text_is_used_or_counted(name, status, says, text):
    found, said = text(name)
    assert found == status, said
    assert re.search(says, " ".join(said.split())), said


def test_text_in_another_script_is_seen(text):
    status, said = text("wrong-language", language="zh")
    assert (status, "0.0% of the letters are of the language's script" in said) == (0, True)


def test_conversations(inputs, text, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}")
    for name in ("parts", "developer"):
        status, said = text(name, "--chat-template-file", template)
        assert status == 0, said
        assert "left out" not in said
    status, said = text("parts", "--chat-template-file", inputs / "raises.jinja")
    assert status == 1
    assert "300 conversations that the chat template refuses (first: TypeError" in said


def test_sequences_beyond_the_context(inputs, refused, quantized):
    options = ("--group-size", 32, "--languages", "en", "--tokens", 64)
    refused(inputs / "v4", "seq_len is 512, .* context of 128", *options, "--seq-len", 512)
    out = quantized(inputs / "v4", *options)  # the default is the model's own
    assert json.loads((out / "mlcalib.json").read_text())["calibration"]["seq_len"] == 128


def test_places(inputs, refused, quantized, tmp_path, monkeypatch):
    out = tmp_path / "mounted"
    (out / "lost+found").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr("os.path.ismount", lambda path: Path(path) == out)
        status = quantized(inputs / "v4", *RTN, out="other")
        mlcalib.quantize_checkpoint(inputs / "v4", out, method="rtn", group_size=32, progress=False)
    assert same(tensors(out), tensors(status))

    def fails(self, target):
        raise OSError(95, "Operation not supported", str(self))

    monkeypatch.setattr(Path, "rename", fails)
    refused(inputs / "v4", "cannot write .* Operation not supported", *RTN)


def test_defaults_of_evaluate_work_with_the_sample(inputs, run):
    status, said = run("evaluate", inputs / "v4", "--languages", "en")
    assert status == 0, said
    assert "fewer tokens than the default" in said


def test_defaults_of_smoothquant_are_its_own(inputs, quantized):
    out = quantized(inputs / "v4", "--method", "smoothquant", *GPTQ[2:])
    options = json.loads((out / "mlcalib.json").read_text())["recipe"]["options"]
    wanted = {"bits": 8, "group_size": -1, "symmetric": True}
    assert {key: options[key] for key in wanted} == wanted


def test_the_format_that_was_asked_for_is_saved(inputs, tmp_path):
    made = mlcalib.quantize(
        inputs / "v4", method="rtn", group_size=32, format="awq", progress=False
    )
    made.save(tmp_path / "awq")
    assert config(tmp_path / "awq")["quantization_config"]["quant_method"] == "awq"


def test_models_in_memory_have_columns_of_their_own(inputs):
    source = str(inputs / "v4")
    made = [
        mlcalib.quantize(source, method="rtn", bits=bits, group_size=32, progress=False)
        for bits in (4, 8)
    ]
    rows = mlcalib.evaluate([source, *made], "en", tokens=64, seq_len=32)
    assert len({row.model for row in rows}) == 3


def test_a_checkpoint_is_written_dequantized(inputs, run, quantized, tmp_path):
    source = quantized(inputs / "v4", *RTN)
    status, said = run("convert", source, tmp_path / "dense", "--format", "dense")
    assert status == 0, said
    made = tensors(tmp_path / "dense")
    for name, linear in load_quantized(source).items():
        assert torch.equal(made[f"{name}.weight"], linear.dequantize())
    assert config(tmp_path / "dense") == config(inputs / "v4")


def test_none_is_a_type_error():
    for call in (
        lambda: _core.update([None], torch.ones(4, 8)),
        lambda: _core.losses(torch.ones(4, 8), [None]),
    ):
        with pytest.raises(TypeError, match="is None"):
            call()


def test_refits_count_on_grids_that_are_given():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 256, generator=generator), torch.randn(999, 256)
    spec = _core.GridSpec(3, 32, range="gram")
    once, thrice = (
        _core.gptq(
            weight,
            x.T @ x,
            _core.GptqOptions(spec, order="natural", static_grid=False, refit=rounds),
        )
        for rounds in (1, 3)
    )
    assert not torch.equal(once.codes, thrice.codes)


def test_a_state_is_loaded_whatever_its_strides():
    x = torch.randn(50, 24)
    first, other = (_core.make_statistic("histogram", 24) for _ in range(2))
    first.update(x)
    wanted = {key: value.clone() for key, value in first.state().items()}
    strided = {
        key: value.T.contiguous().T if value.dim() == 2 else value
        for key, value in first.state().items()
    }
    other.load(strided)
    assert all(torch.equal(other.state()[key], value) for key, value in wanted.items())


def test_inputs_of_another_width_are_refused():
    spec = _core.GridSpec(4, 16)
    packed = _core.pack_linear(_core.rtn(torch.randn(8, 64), spec))
    with pytest.raises(ValueError, match="60"):
        _core.packed_linear(torch.randn(3, 60), packed, 8, 64, spec)


def test_the_tokenizer_of_the_inputs_is_the_projects_own(inputs):
    assert (inputs / "v4/tokenizer.json").read_text() == make_tokenizer(
        "<s> $A"
    ).backend_tokenizer.to_str(pretty=True)
