"""What a checkpoint's README.md says, and what evaluation adds to it."""

import json
import re
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from small_models import tiny_llama

import mlcalib
from mlcalib.checkpoints.card import check_card, converted_card, model_card, write_results
from mlcalib.cli import main
from mlcalib.common import compat
from mlcalib.languages import languages, script_name
from mlcalib.report import write_model_card
from mlcalib.results.rows import Row


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama(vocabulary=384).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("The base model's own card.")
    return folder


@pytest.fixture(scope="module")
def quantized(folder):
    calibration = mlcalib.calibration(
        folder, "en:3,sw:2,code:1", "sample", tokens=300, seq_len=32, seed=5, separator="\n\n"
    )
    return mlcalib.quantize(
        folder, calibration, group_size=32, symmetric=True, damp=0.02, progress=False,
        ignore=[r"layers\.0\.mlp"], overrides={"o_proj": {"bits": 8}},
    )  # fmt: skip


@pytest.fixture
def checkpoint(quantized, tmp_path):
    quantized.save(tmp_path / "out")
    return tmp_path / "out"


def section(text, title):
    return re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def test_the_front_matter_is_what_the_hub_reads(checkpoint):
    data = ModelCard.load(checkpoint / "README.md").data
    assert data.to_dict() == {
        "language": ["en", "sw"],  # code is no language
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mlcalib", "gptq", "4-bit", "compressed-tensors"],
    }


def test_the_licence_of_the_source_is_kept(folder, tmp_path):
    card = "---\nlicense: apache-2.0\nlanguage: [en, yo]\nwidget: [a]\n---\nOf the base model.\n"
    (folder / "README.md").write_text(card)
    try:
        quantized = mlcalib.quantize(folder, method="rtn", group_size=32, progress=False)
        quantized.save(tmp_path / "out")
    finally:
        (folder / "README.md").write_text("The base model's own card.")
    found = ModelCard.load(tmp_path / "out" / "README.md")
    assert found.data.license == "apache-2.0"
    assert found.data.to_dict()["widget"] == ["a"]
    assert "mlcalib" in found.data.tags
    assert found.text.count("Of the base model.") == 1


def test_the_card_says_what_was_done(checkpoint, folder):
    text = (checkpoint / "README.md").read_text()
    own, below = text.split("## The card of the model that was quantized")
    assert below.strip() == "The base model's own card."
    assert "own card" not in own
    for part in (
        "# tiny: gptq, 4 bits, calibrated on en0.5+sw0.333333+code0.166667",
        f"- Base model: `{folder}`, quantized in float32",
        "range gram, damp 0.02, order activation",
        "- Weights: 4 bits, symmetric, groups of 32 input channels",
        f"torch {torch.__version__}",
        "| en | English | Latin | 150 | 150 |",
        "| code | Source code |  | 50 | 50 |",
        "300 tokens of the corpus `sample`",
        r"text '\n\n'",
        "`propagate=quantized`",
        "11 linears are quantized",
        r"- `layers\.0\.mlp` (3 linears): in floating point",
        "- `o_proj` (2 linears): bits 8, group_size 32, symmetric True",
        'AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        "Nothing has been measured yet.",
    ):
        assert part in text
    assert "## To look at" not in text  # nothing to warn of
    assert "GGUF" not in text


def test_losses_are_summed_over_layers(checkpoint, quantized):
    rows = section((checkpoint / "README.md").read_text(), "Calibration").splitlines()
    sums = {
        code: sum(losses[code] for losses in quantized.losses.values())
        for code in ("en", "sw", "code")
    }
    mean = sum(sums.values()) / 3
    for code, total in sums.items():
        (row,) = (row for row in rows if row.startswith(f"| {code} |"))
        *_, loss, relative = (cell.strip() for cell in row.strip("|").split("|"))
        assert float(loss) == pytest.approx(total, rel=1e-3)
        assert float(relative) == pytest.approx(total / mean, abs=0.006)


def test_the_call_makes_the_same_checkpoint_again(checkpoint, quantized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = section((checkpoint / "README.md").read_text(), "Make it again")
    exec(code.removeprefix("```python\n").rpartition("```")[0], {})
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "OUT" / file).read_bytes() == (checkpoint / file).read_bytes()
    first, second = (
        json.loads((path / "mlcalib.json").read_text()) for path in (checkpoint, tmp_path / "OUT")
    )
    assert first["calibration"] == second["calibration"]
    assert first["layers"] == second["layers"]


def test_rounding_without_text(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = mlcalib.quantize(
        folder, method="rtn", group_size=-1, bits=3, format="dense", progress=False
    )
    made.save("first", "dense")
    text = (tmp_path / "first" / "README.md").read_text()
    assert "language" not in ModelCard(text).data.to_dict()
    assert "None: no text was used." in section(text, "Calibration")
    assert "one scale for each row" in text
    assert "nothing is smaller" in text
    exec(re.search("```python\n(import mlcalib.*?)```", text, re.DOTALL)[1], {})
    assert (tmp_path / "OUT" / "model.safetensors").read_bytes() == (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()


def test_ids_given_in_memory_and_too_little_text(folder, tokenizer, tmp_path):
    ids = {"math": [list(range(40))], "en": [list(range(50))]}
    calibration = mlcalib.calibration(None, corpus=ids, seq_len=32)
    mlcalib.quantize(folder, calibration, group_size=32, progress=False).save(tmp_path / "ids")
    text = (tmp_path / "ids" / "README.md").read_text()
    assert "| math | Mathematics |  | 40 | 40 |" in text
    assert "text or token ids were given in memory" in text
    assert calibration.fingerprint in text
    assert ModelCard(text).data.language == ["en"]

    short = mlcalib.calibration(
        tokenizer, corpus={"en": ["one two three"]}, tokens=50, seq_len=16, allow_short=True
    )
    made = mlcalib.quantize(folder, short, group_size=32, progress=False)
    got = short.tokens["en"]
    assert f"- en has {got} of 50 tokens asked for" in model_card(made.metadata("dense"))
    assert f"en has {got} of 50 tokens" in made.summary()


def test_base_models_on_the_hub_are_named_and_gguf_is_explained(quantized):
    record = quantized.metadata("compressed-tensors")
    for name, relation in (("org/Some-Model.v1", "quantized"), ("LlamaForCausalLM", None)):
        record["recipe"]["model"] = name
        data = ModelCard(model_card(record)).data.to_dict()
        assert data.get("base_model") == (name if relation else None)
        assert data.get("base_model_relation") == relation
    assert "model, tokenizer = ...  # LlamaForCausalLM, given in memory" in model_card(record)
    assert "mlcalib.quantize(model, calibration, tokenizer=tokenizer, " in model_card(record)
    record["recipe"]["model"] = "/models/some.Q4_1.gguf"
    assert "float, it means the weights of that file, dequantized" in model_card(record)


def test_every_script_has_a_name():
    names = {language.code: script_name(language.script) for language in languages()}
    assert names["sw"] == "Latin"
    assert names["code"] == ""
    assert all(names[language.code] for language in languages() if language.script)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mlcalib", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def test_evaluation_puts_its_results_beside_float(run, folder, checkpoint, tmp_path):
    card = checkpoint / "README.md"
    card.write_text(card.read_text() + "\nWritten by hand.\n")
    before = card.read_text()
    options = ["--languages", "en,sw", "--seq-len", 32, "--dtype", "float32", "--card"]
    code, out, err = run("evaluate", folder, checkpoint, "--tokens", 64, *options)
    assert code == 0, err
    assert f"written to {checkpoint}/README.md" in out
    results = section(card.read_text(), "Results")
    table = out.partition("(bits per byte)\n\n")[2].partition("\n\n")[0]
    assert table.startswith("| language |")
    assert table in results  # the very table that was printed
    for part in ("Rise in token loss", "first 64 tokens", "split of `sample`", f"`{folder}`"):
        assert part in results
    assert "Nothing has been measured" not in results

    # Again, with other results: they replace the first, and nothing else changes.
    code, _, err = run("evaluate", checkpoint, "--tokens", 96, *options)
    assert code == 0, err
    results = section(card.read_text(), "Results")
    assert "first 96 tokens" in results
    assert "first 64" not in results
    assert "float" not in results
    assert card.read_text().endswith("\nWritten by hand.\n")
    assert section(card.read_text(), "Layers") == section(before, "Layers")
    assert (folder / "README.md").read_text() == "The base model's own card."
    assert [path.name for path in checkpoint.glob(".*")] == []


def test_cards_are_looked_at_before_anything_is_measured(run, folder, checkpoint, monkeypatch):
    monkeypatch.setattr(mlcalib, "evaluate", None)
    code, _, err = run("evaluate", folder, "--card")
    assert code == 1
    assert "is a checkpoint that mlcalib wrote (a folder with mlcalib.json)" in err
    (checkpoint / "README.md").write_text("My own words.")
    code, _, err = run("evaluate", folder, checkpoint, "--card")
    assert code == 1
    assert re.search(r"README\.md has no lines '<!-- results.*leave --card out", err, re.DOTALL)
    (checkpoint / "README.md").unlink()
    with pytest.raises(ValueError, match=r"README\.md does not exist"):
        check_card(checkpoint)


def test_no_results_are_no_results(checkpoint):
    with pytest.raises(ValueError, match="no results to put into the card"):
        write_model_card(checkpoint, [], "")


def test_float_comes_first_whatever_the_order_of_rows(checkpoint):
    rows = [
        Row(name, method, "none", "en", "perplexity", metric, value, None, 9)
        for name, method, value in (("a", "rtn", 2.5), ("b", "float", 2.0))
        for metric in ("token_loss", "perplexity", "bits_per_byte")
    ]
    write_model_card(checkpoint, rows, "As said.")
    results = section((checkpoint / "README.md").read_text(), "Results")
    assert "| en       | 2.00 (2.000) | 2.50 (2.500) |" in results
    assert "| en       | +0.500 |" in results
    assert "`float` is `b`." in results


def test_a_card_that_cannot_be_written_stays_as_it_was(checkpoint, monkeypatch):
    before = (checkpoint / "README.md").read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_results(checkpoint, "new")
    assert (checkpoint / "README.md").read_text() == before
    assert [path.name for path in checkpoint.glob(".*")] == []


@pytest.mark.parametrize(
    ("architecture", "model_type", "loaded_by"),
    [
        ("LlamaForCausalLM", "llama", "AutoModelForCausalLM"),
        ("LlavaForConditionalGeneration", "llava", "AutoModelForImageTextToText"),
        ("Gemma3ForConditionalGeneration", "gemma3", "AutoModelForImageTextToText"),
        ("VoxtralForConditionalGeneration", "voxtral", "VoxtralForConditionalGeneration"),
        ("LlavaForConditionalGeneration", "llama", "LlavaForConditionalGeneration"),
    ],
)
def test_a_card_names_the_class_that_loads_the_model(
    quantized, architecture, model_type, loaded_by
):
    assert compat.auto_class(architecture, model_type) == loaded_by
    record = quantized.metadata("gptq")
    card = model_card(record, loaded_by)
    reads = "AutoTokenizer" if loaded_by == "AutoModelForCausalLM" else "AutoProcessor"
    assert f"from transformers import {loaded_by}, {reads}\n" in card
    assert f'\nmodel = {loaded_by}.from_pretrained("THIS_FOLDER")\n' in card
    task = "image-text-to-text" if "ImageText" in loaded_by else "text-generation"
    assert f"pipeline_tag: {task}\n" in card
    other = converted_card(card, "gptq", "compressed-tensors")
    expected = model_card(quantized.metadata("compressed-tensors"), loaded_by)
    assert section(other, "Load it") == section(expected, "Load it") != section(card, "Load it")
