"""Windows of evaluation text, and what is said of text that is short or windows that are long."""

import json

import pytest
import torch
from small_models import tiny_llama
from small_tokenizer import make_tokenizer
from typer.testing import CliRunner

import mlcalib
from mlcalib.calibration_sets import stream
from mlcalib.cli import app
from mlcalib.evaluation import definition, evaluation_seq_len, read_rows, write_rows
from mlcalib.evaluation.perplexity import score
from mlcalib.models.context import check_context

TEXT = [f"Soko la {number} hufunguliwa kabla ya jua kuchomoza." for number in range(9)]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The model with a tokenizer that adds BOS, and with one that does not."""
    found = {}
    for name, template in (("bos", "<s> $A"), ("plain", None)):
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        make_tokenizer(template).save_pretrained(found[name])
    return found


def plain_losses(model, text, tokens, seq_len):
    """Each token after BOS and what stands before it in its window."""
    ids, losses, bos = text.ids.tolist(), [], list(text.begin)
    window = []
    for k in range(tokens):
        if len(window) == seq_len or not window:
            window = [] if ids[k : k + len(bos)] == bos else list(bos)
        window.append(ids[k])
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0, -1].double()
        losses.append(-torch.log_softmax(logits, 0)[ids[k + 1]].item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("separator", [None, "eos", "\n"])
@pytest.mark.parametrize(("tokens", "seq_len"), [(64, 16), (50, 16), (7, 16), (33, 2)])
def test_every_window_begins_with_bos(model, separator, tokens, seq_len):
    text = stream(make_tokenizer("<s> $A"), TEXT, separator)
    scores = score(model, text, tokens=tokens, seq_len=seq_len)
    expected = plain_losses(model, text, tokens, seq_len)
    torch.testing.assert_close(scores.loss, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.document, text.document[1 : tokens + 1])
    with pytest.raises(ValueError, match="seq_len is 1; a window needs 2 tokens or more"):
        score(model, text, tokens=8, seq_len=1)


def test_rows_and_cache_tell_windows_apart(folders, tmp_path):
    options = {"tokens": 200, "seq_len": 32, "progress": False, "cache": tmp_path / "cache"}
    found = {
        (name, window_bos): mlcalib.evaluate(folders[name], "sw", window_bos=window_bos, **options)
        for name in folders
        for window_bos in (True, False)
    }
    for (name, window_bos), rows in found.items():
        expected = "bos <s>" if (name, window_bos) == ("bos", True) else ""
        assert {row.windows for row in rows} == {expected}
        write_rows(rows, tmp_path / "rows.jsonl")
        assert read_rows(tmp_path / "rows.jsonl") == rows
        first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
        assert ("windows" in first) == bool(expected)
    assert found["plain", True] == found["plain", False]
    assert found["bos", True][0].value != found["bos", False][0].value


def test_fidelity_reads_the_same_windows(folders):
    options = {"tokens": 100, "seq_len": 32, "progress": False, "fidelity": True}
    models = {"one": folders["bos"], "two": folders["bos"]}
    rows = mlcalib.evaluate(models, "sw", **options)
    kl = [row for row in rows if row.metric == "kl"]
    assert [(row.value, row.windows) for row in kl] == [(0, "bos <s>")]
    with pytest.raises(ValueError, match="its tokenizer makes other tokens"):
        mlcalib.evaluate([folders["bos"], folders["plain"]], "sw", **options)


def test_the_definition_names_windows():
    options = {"tokens": None, "seq_len": 64, "separator": None}
    tokenizer = make_tokenizer("<s> $A")
    assert "every context begins with bos <s>; between" in definition(tokenizer, **options)
    assert "begins with" not in definition(tokenizer, window_bos=False, **options)
    assert "first 8,192 (or all) tokens" in definition(make_tokenizer(), **options)


def test_defaults_take_all_of_a_short_text(folders, caplog):
    rows = mlcalib.evaluate(folders["plain"], "en,sw", seq_len=64, progress=False)
    counts = {row.language: row.n for row in rows}
    assert all(300 < count < 8192 for count in counts.values())
    said = ", ".join(f"{code} {count:,}" for code, count in counts.items())
    assert f"fewer tokens than the default, 8,192; all are scored: {said}" in caplog.text
    with pytest.raises(ValueError, match="8,192 tokens are to be scored, but the text has"):
        mlcalib.evaluate(folders["plain"], "en", tokens=8192, seq_len=64, progress=False)
    assert evaluation_seq_len([folders["plain"]]) == 128


def test_the_command_with_its_defaults(folders):
    done = CliRunner().invoke(app, ["evaluate", str(folders["bos"]), "--languages", "en,sw"])
    assert done.exit_code == 0, done.output
    assert "first 8,192 (or all) tokens per language" in done.output
    assert "context 128, stride 128 (no overlap), every context begins with bos <s>" in done.output
    arguments = ["evaluate", str(folders["bos"]), "--no-window-bos", "--seq-len", "64"]
    plain = CliRunner().invoke(app, [*arguments, "--languages", "en", "--tokens", "100"])
    assert "context 64, stride 64 (no overlap); between" in plain.output


def test_sequences_beyond_the_context_are_refused(folders, model):
    message = r"seq_len is 129, but .* has a context of 128 tokens; give --seq-len 128"
    with pytest.raises(ValueError, match=message):
        mlcalib.evaluate(folders["plain"], "sw", tokens=200, seq_len=129, progress=False)
    with pytest.raises(ValueError, match=message):
        score(model, stream(make_tokenizer(), TEXT), tokens=9, seq_len=129)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64}, 64),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": 16, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 64),
        (
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"factor": 8, "original_max_position_embeddings": 4},
            },
            64,
        ),
    ],
)
def test_context_lengths(config, length):
    check_context("m", config, length)
    check_context("m", {}, 10**9)
    with pytest.raises(ValueError, match=f"m has a context of {length} tokens"):
        check_context("m", config, length + 1)
