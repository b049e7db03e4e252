"""The command line, end to end on a tiny model, and its errors."""

import json
import re
import sys

import pytest
import torch
from small_models import tiny_llama
from transformers import AutoModelForCausalLM

import mlcalib
from mlcalib.cli import ALONE, SHARED, app, main
from mlcalib.languages import languages
from mlcalib.results.rows import read_results, read_rows

TEN = ["en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha"]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama(vocabulary=384, tied=True)
    model.config.max_position_embeddings = 1024  # the commands' own --seq-len is 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run as the shell would; returns exit code, standard output and standard error."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mlcalib", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_plans_say_what_is_taken_and_run_nothing(run, folder, tmp_path):
    out = tmp_path / "out"
    options = ("--out", out, "--languages", "en,sw", "--tokens", 200, "--seq-len", 32, "--plan")
    code, text, error = run("quantize", folder, *options, "--group-size", 32, "--memory", 1e-6)
    assert code == 0, error
    assert text.startswith("device: ")
    assert "statistics of sw (of one text: " in text
    assert "at most 1 of 2 languages are held at a time, in 2 turns" in text
    code, text, error = run("evaluate", folder, "--seq-len", 32, "--plan")
    assert code == 0, error
    assert re.search(r"weights 0\.\d+ GB; 1 sequences of 32 tokens at once", text)
    assert not list(tmp_path.iterdir())


def test_quantize_then_evaluate(run, folder, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run(
        "quantize", folder, "--out", out, "--group-size", 32, "--languages", "en:0.75,sw:0.25",
        "--tokens", 200, "--seq-len", 32, "--seed", 3, "--option", "damp=0.02", "--symmetric",
    )  # fmt: skip
    assert code == 0, text
    assert re.search(r"^en +150 +150 ", text, re.MULTILINE)
    assert "separator: none: the tokenizer adds nothing" in text
    record = json.loads((out / "mlcalib.json").read_text())
    assert record["recipe"]["options"]["damp"] == 0.02
    assert record["recipe"]["options"]["symmetric"] is True
    assert record["recipe"]["format"] == "compressed-tensors"
    assert record["calibration"]["languages"]["sw"]["got"] == 50
    layer = record["layers"]["model.layers.1.mlp.down_proj"]
    assert layer["damp"] == 0.02
    assert set(layer["loss_per_token"]) == {"en", "sw"}
    assert AutoModelForCausalLM.from_pretrained(out).config.tie_word_embeddings

    results = tmp_path / "results.jsonl"
    code, text, _ = run(
        "evaluate", folder, out, "--languages", "en,sw", "--tokens", 64, "--seq-len", 32,
        "--out", results,
    )  # fmt: skip
    assert code == 0, text
    for part in ("| language |", "gptq en0.75+sw0.25", "| worst", "context 32, stride 32"):
        assert part in text
    assert {row.model for row in read_rows(results)} == {str(folder), str(out)}


def test_fidelity_is_shown_and_kept(run, folder, tmp_path):
    out, cache, results = (tmp_path / name for name in ("out", "cache", "results.jsonl"))
    run("quantize", folder, "--out", out, "--method", "rtn", "--group-size", 32)
    options = ["--languages", "en,sw", "--tokens", 150, "--seq-len", 32, "--fidelity"]
    options += ["--cache", cache, "--out", results]
    code, text, _ = run("evaluate", folder, out, *options)
    assert code == 0, text
    assert f"Fidelity to {folder}" in text
    assert re.search(r"^\| en +\| +rtn \| +[+-]\d\.\d+ \[", text, re.MULTILINE)
    assert "KL(first model || model)" in text
    rows = read_rows(results)
    assert {row.task for row in rows} == {"perplexity", "fidelity"}
    items = {each.language: each for each in read_results(results).items if each.metric == "kl"}
    for row in rows:
        if row.metric == "kl":
            documents = items[row.language]
            mean = sum(documents.values) / sum(documents.sizes)
            assert mean == pytest.approx(row.value)
    assert items.keys() == {"en", "sw"}
    code, written, _ = run("report", results, "--resamples", 50)
    assert code == 0, written
    page = results.with_name("results.report") / "report.md"
    assert "KL from the float model" in page.read_text(encoding="utf-8")
    assert len(list(cache.rglob("*.json"))) == 7  # 2 models, 1 comparison, and the files' sums
    code, again, _ = run("evaluate", folder, out, *options)
    assert (code, again) == (0, text)
    assert read_rows(results) == rows
    code, _, err = run("evaluate", folder, "--fidelity")
    assert code == 1
    assert "give two or more" in err


def test_rtn_and_dense_need_no_text(run, folder, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run(
        "quantize", folder, "--out", out, "--method", "rtn", "--format", "dense", "--bits", 3,
        "--group-size", -1,
    )  # fmt: skip
    assert code == 0, text
    assert "separator:" not in text
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32


def test_bits_and_skip_per_layer(run, folder, tmp_path):
    out = tmp_path / "out"
    code, _, error = run(
        "quantize", folder, "--out", out, "--method", "rtn", "--group-size", 32, "--symmetric",
        "--bits", "down_proj=8", "--bits", "4", "--bits", "(?<=attn.)[qkv]_proj=8",
        "--ignore", r"layers\.0\.", "--ignore", "o_proj",
    )  # fmt: skip
    assert code == 0, error
    record = json.loads((out / "mlcalib.json").read_text())
    changed = [(each["pattern"], each["options"]) for each in record["recipe"]["overrides"]]
    assert [pattern for pattern, _ in changed] == [
        r"layers\.0\.", "o_proj", "down_proj", "(?<=attn.)[qkv]_proj",
    ]  # fmt: skip
    assert [options and options["bits"] for _, options in changed] == [None, None, 8, 8]
    assert record["recipe"]["options"]["bits"] == 4
    assert len(record["layers"]) == 6
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32


def test_a_study_is_changed_from_the_command_line(run, folder, tmp_path):
    out = tmp_path / "out"
    study = ("study", "quantization-multilingual-small", "--out", out, "--model", folder, "--plan")
    code, said, _ = run(*study, "--languages", "en,sw", "--limit", 1)
    assert code == 0
    assert f"model {folder} ({folder.name}): 6 checkpoints to make" in said
    code, _, err = run(*study, "--languages", "sw", "--tasks", "flores", "--data", tmp_path)
    assert code == 1
    assert "fidelity is measured on the text of perplexity, but the tasks are flores" in err
    code, _, err = run(*study, "--tasks", "perplexity, flores", "--data", tmp_path)
    assert code == 1
    assert f"{tmp_path}" in err
    assert "flores" in err
    assert not out.exists()


def test_info(run):
    code, text, _ = run("info")
    assert code == 0
    for part in (mlcalib.__version__, "gptq, rtn", "dense, gguf, gptq, gptq-v2", "multimix"):
        assert part in text


def test_languages(run, monkeypatch):
    code, text, _ = run("languages")
    assert code == 0
    header, *lines = (line.split("\t") for line in text.splitlines())
    assert header == ["code", "name", "script", "family", "tier", "benchmarks"]
    assert [line[0] for line in lines] == [entry.code for entry in languages()]
    zulu = next(line for line in lines if line[0] == "zu")
    assert zulu[1:5] == ["isiZulu", "Latn", "Niger-Congo", "2"]
    assert "afrixnli" in zulu[5].split(", ")
    assert lines[-1] == ["math", "Mathematics", "", "", "", ""]

    _, text, _ = run("languages", "multi10")
    assert [line.split("\t")[0] for line in text.splitlines()[1:]] == TEN

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    _, text, _ = run("languages", "en,sw")
    assert re.search(r"│ sw +│ Swahili +│ Latn ", text)
    assert len(text.splitlines()[-1]) <= 100


@pytest.mark.parametrize("command", [command.__name__ for command in (*SHARED, *ALONE)])
def test_help_says_what_every_option_is(run, command):
    code, text, _ = run(command, "--help")
    assert code == 0
    parameters = next(c for c in app.registered_commands if c.callback.__name__ == command)
    assert parameters.callback.__doc__.splitlines()[0].split(".")[0][:30] in text


def test_the_version(run):
    code, text, _ = run("--version")
    assert (code, text.split()) == (0, ["mlcalib", mlcalib.__version__])


QUANTIZE = ["quantize", "{folder}", "--out", "{out}", "--group-size", "32", "--tokens", "64"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*QUANTIZE, "--languages", "en,tlh"], "ValueError: .*'tlh'"),
        ([*QUANTIZE, "--languages", "en:1,sw:0"], "weight must"),
        (["languages", "klingon"], "Unknown set or language 'klingon'"),
        ([*QUANTIZE, "--corpus", "files:/nowhere"], "FileNotFoundError: .*/nowhere"),
        ([*QUANTIZE, "--corpus", "web"], "Unknown corpus 'web'"),
        ([*QUANTIZE, "--tokens", "1000000"], "are missing.*--allow-short"),
        ([*QUANTIZE, "--option", "damp"], "expected NAME=VALUE"),
        (
            [*QUANTIZE, "--option", "damp=much"],
            "ValueError: damp is 'much', expected a valid number",
        ),
        ([*QUANTIZE, "--option", "dampp=1"], "Unknown option 'dampp'. Did you mean 'damp'"),
        ([*QUANTIZE, "--seq-len", "1"], "seq_len is 1"),
        ([*QUANTIZE, "--scheme", "W4A6"], "Unknown scheme 'W4A6'. Did you mean 'W4A16'"),
        ([*QUANTIZE, "--bits", "four"], "--bits is 'four', expected a number, or REGEX=BITS"),
        ([*QUANTIZE, "--bits", "=8"], "--bits is '=8', expected"),
        ([*QUANTIZE, "--bits", "down="], "--bits is 'down=', expected"),
        ([*QUANTIZE, "--bits", "4", "--bits", "8"], "given as 4 and as 8"),
        ([*QUANTIZE, "--bits", "mlp=4", "--bits", "mlp=8"], "'mlp' twice"),
        ([*QUANTIZE, "--bits", "9"], "bits is 9, expected 2 to 8"),
        ([*QUANTIZE, "--bits", "gate=8"], "'gate' takes model.layers.0.mlp.gate_proj but not"),
        ([*QUANTIZE, "--ignore", "nothing"], "'nothing' matches none of the 14 linears"),
        ([*QUANTIZE[:5], "48"], "group_size 48 does not divide"),
        (["quantize", "/nowhere", "--out", "{out}"], "There is no model at '/nowhere'"),
        (
            ["quantize", "{folder}", "--out", "{folder}"],
            "FileExistsError: .*exists and is not empty",
        ),
        (["evaluate", "{folder}", "--tokens", "999999"], "language 'en'.*are to be scored"),
    ],
)
def test_errors_are_one_message_and_leave_nothing(run, folder, tmp_path, args, message):
    places = {"folder": folder, "out": tmp_path / "out"}
    code, _, error = run(*(arg.format(**places) for arg in args))
    assert code == 1
    assert "Traceback" not in error
    assert re.search(message, error, re.DOTALL), error
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_model_is_named(run, folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-100])
    code, _, error = run("quantize", broken, "--out", tmp_path / "out", "--method", "rtn")
    assert code == 1
    assert "model.safetensors is not a usable safetensors file" in error


def test_a_torch_other_than_the_one_built_with():
    from mlcalib import _check_torch

    _check_torch("2.13.0+cpu", "2.13.0+cu130")
    with pytest.raises(
        ImportError, match=r"built with torch 2\.12\.1\+cpu, but torch 2\.13\.0"
    ) as e:
        _check_torch("2.12.1+cpu", "2.13.0+cpu")
    assert "pip install --no-build-isolation --force-reinstall" in str(e.value)


@pytest.mark.parametrize("args", [["info"], ["check", "x"], ["lm-eval", "--model", "mlcalib"]])
def test_what_one_process_does_is_refused_to_several(run, args, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run("info")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, _, said = run(*args)
    assert code == 1
    assert f"mlcalib {args[0]} is done by one process, but torchrun started 3" in said
    assert "start it without torchrun" in said
