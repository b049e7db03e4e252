"""Perplexity against the plainest way to compute it; results and tables."""

import json
import math

import pytest
import torch
from small_models import tiny_llama
from transformers import AutoModelForCausalLM

import mlcalib
from mlcalib.calibration_sets import stream
from mlcalib.common import compat
from mlcalib.evaluation import definition, eval_text, evaluation_dtype, perplexity_of, rows_of
from mlcalib.evaluation.perplexity import Scores, score
from mlcalib.report import markdown, metric_table, perplexity_table, rise_table
from mlcalib.results.rows import Row, read_rows, write_rows

TEXT = ["Soko hufunguliwa kabla ya jua kuchomoza.", "市场在日出前开门。", "one more", "and another"]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture(scope="module")
def text(tokenizer):
    return stream(tokenizer, TEXT * 3)


def plain_losses(model, ids, tokens, seq_len):
    losses = []
    with torch.no_grad():
        for k in range(1, tokens + 1):
            start = (k - 1) // seq_len * seq_len
            logits = model(ids[None, start:k]).logits[0, -1].double()
            losses.append(-torch.log_softmax(logits, 0)[ids[k]].item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(("tokens", "seq_len"), [(64, 16), (50, 16), (7, 16), (33, 32)])
def test_losses_are_those_of_the_plain_way(model, text, tokens, seq_len):
    scores = score(model, text, tokens=tokens, seq_len=seq_len)
    expected = plain_losses(model, text.ids, tokens, seq_len)
    torch.testing.assert_close(scores.loss, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.byte_counts, text.byte_counts[1 : tokens + 1])


def test_means_and_errors_by_hand():
    scores = Scores(
        loss=torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64),
        byte_counts=torch.tensor([1, 2, 3, 4]),
        document=torch.tensor([0, 0, 1, 1]),
    )
    mean, error = scores.token_loss
    assert mean == 3.0
    # Residuals of the two documents: 3 - 2*3 = -3 and 9 - 2*3 = 3; sqrt((9 + 9) * 2 / 1) / 4.
    assert error == pytest.approx(1.5)
    assert scores.perplexity == pytest.approx((math.exp(3), 1.5 * math.exp(3)))
    assert scores.bits_per_byte[0] == pytest.approx(12 / 10 / math.log(2))


def test_sums_over_documents_are_in_their_order():
    scores = Scores(
        loss=torch.tensor([1.0, 2.5, 3.0, 6.0], dtype=torch.float64),
        byte_counts=torch.tensor([1, 2, 3, 4]),
        document=torch.tensor([0, 0, 2, 5]),
    )
    assert scores.by_document() == ([3.5, 3.0, 6.0], [2, 1, 1], [3, 3, 4])
    assert json.loads(json.dumps(scores.by_document()._asdict())) == {
        "loss": [3.5, 3.0, 6.0],
        "tokens": [2, 1, 1],
        "bytes": [3, 3, 4],
    }


def test_a_live_model_gives_the_same_rows(model, tokenizer, folder, rows):
    texts = eval_text(tokenizer, "en,sw", "sample", None, tokens=300)
    assert list(texts) == ["en", "sw"]
    scores = perplexity_of(model, texts, tokens=300, seq_len=32)
    assert rows_of(scores, str(folder)) == [row for row in rows if row.method == "float"]
    with pytest.raises(ValueError, match=r"^language 'en': 100,000 tokens are to be scored"):
        perplexity_of(model, texts, tokens=100_000, seq_len=32)


def test_one_document_has_no_error(model, tokenizer):
    text = stream(tokenizer, [" ".join(TEXT)])
    assert score(model, text, tokens=20, seq_len=16).token_loss[1] is None


def test_too_little_text_says_how_much_there_is(model, text):
    with pytest.raises(ValueError, match=rf"has {len(text.ids)}, .* at most {len(text.ids) - 1} "):
        score(model, text, tokens=len(text.ids), seq_len=16)


def test_a_model_that_gives_nan(text):
    broken = tiny_llama(vocabulary=384)
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="the model gives NaN or Inf"):
        score(broken, text, tokens=8, seq_len=16)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder, model, tokenizer):
    quantized = mlcalib.quantize(
        model, method="rtn", tokenizer=tokenizer, group_size=32, progress=False
    )
    options = {"tokens": 300, "seq_len": 32, "progress": False}
    return mlcalib.evaluate([folder, quantized], "en,sw", "sample", **options)


def test_items_are_the_documents_behind_the_rows(rows):
    loss = {(row.method, row.language): row for row in rows if row.metric == "token_loss"}
    assert len(rows.items) == 4
    for each in rows.items:
        assert (each.task, each.metric) == ("perplexity", "perplexity")
        assert len(each.values) == len(each.sizes) > 1
        row = loss[each.method, each.language]
        assert sum(each.values) / sum(each.sizes) == pytest.approx(row.value)


def test_rows_are_tidy(rows, folder):
    assert len(rows) == 2 * 2 * 3
    assert {(row.model, row.method) for row in rows if row.language == "sw"} == {
        (str(folder), "float"),
        ("LlamaForCausalLM", "rtn"),
    }
    for row in rows:
        assert (row.task, row.calibration, row.n) == ("perplexity", "none", 300)
        assert row.stderr is not None
        assert row.seed is None
        assert f"torch {torch.__version__.partition('+')[0]}" in row.versions
    loss = {(r.method, r.language): r.value for r in rows if r.metric == "token_loss"}
    for row in rows:
        if row.metric == "perplexity":
            assert row.value == pytest.approx(math.exp(loss[row.method, row.language]))


def test_a_checkpoint_says_how_it_was_made(model, tokenizer, tmp_path):
    calibration = mlcalib.calibration(tokenizer, "en,sw", tokens=128, seq_len=32)
    quantized = mlcalib.quantize(
        model, calibration, tokenizer=tokenizer, group_size=32, progress=False
    )
    quantized.save(tmp_path / "out")
    options = {"tokens": 64, "seq_len": 32, "progress": False, "dtype": "float32"}
    from_disk = mlcalib.evaluate(tmp_path / "out", "sw", **options)
    in_memory = mlcalib.evaluate(quantized, "sw", **options)
    assert {(row.method, row.calibration) for row in from_disk} == {("gptq", "en+sw")}
    # Packed weights and dequantized ones: sums in another order.
    assert [row.value for row in from_disk] == pytest.approx([r.value for r in in_memory], rel=1e-5)
    (tmp_path / "out" / "mlcalib.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mlcalib\.json is not a record that mlcalib wrote"):
        mlcalib.evaluate(tmp_path / "out", "sw", **options)


def test_auto_is_bfloat16_where_that_is_fast(monkeypatch, folder, model, tokenizer):
    options = {"method": "rtn", "tokenizer": tokenizer, "group_size": 32, "progress": False}
    quantized = mlcalib.quantize(model, **options)
    for amx, expected in ((True, "bfloat16"), (False, "auto")):
        monkeypatch.setattr(compat, "multiplies_bfloat16", lambda amx=amx: amx)
        assert evaluation_dtype([folder, "hub/name"]) == expected
        assert evaluation_dtype([folder, quantized]) == "auto"
        assert evaluation_dtype([folder], "float32") == "float32"
    monkeypatch.setattr(compat, "multiplies_bfloat16", lambda: True)
    options = {"tokens": 64, "seq_len": 32, "progress": False}
    fast, stored, half = (
        mlcalib.evaluate(folder, "sw", dtype=dtype, **options)
        for dtype in ("auto", "float32", "bfloat16")
    )
    assert fast == half != stored


def test_a_transformers_model_with_its_tokenizer(model, tokenizer, folder, tmp_path):
    options = {"tokens": 64, "seq_len": 32, "progress": False}
    [row, *_] = mlcalib.evaluate(model, "sw", tokenizer=tokenizer, cache=tmp_path, **options)
    assert (row.model, row.method) == ("LlamaForCausalLM", "float")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    rows = mlcalib.evaluate([loaded, model], "sw", tokenizer=tokenizer, **options)
    assert [each.model for each in rows[::3]] == [str(folder), "LlamaForCausalLM"]
    assert {each.value for each in rows if each.metric == row.metric} == {row.value}
    with pytest.raises(ValueError, match=r"LlamaForCausalLM was given without its tokenizer; give"):
        mlcalib.evaluate(model, "sw", **options)


def test_too_little_text_names_the_language(folder):
    with pytest.raises(
        ValueError, match=r"^language 'en', model .*100,000 tokens are to be scored"
    ):
        mlcalib.evaluate(folder, "en", "sample", tokens=100_000, seq_len=32, progress=False)


def test_rows_survive_the_disk(rows, tmp_path):
    write_rows(rows, tmp_path / "deep" / "results.jsonl")
    assert read_rows(tmp_path / "deep" / "results.jsonl") == rows
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["results.jsonl"]
    first = json.loads((tmp_path / "deep" / "results.jsonl").read_text().splitlines()[0])
    assert list(first) == [
        "model",
        "method",
        "calibration",
        "language",
        "task",
        "metric",
        "value",
        "stderr",
        "n",
        "seed",
        "versions",
    ]


def test_rows_of_before_there_were_seeds_and_versions(tmp_path):
    old = {"model": "m", "method": "float", "calibration": "none", "language": "en"}
    old |= {"task": "perplexity", "metric": "token_loss", "value": 1.5, "stderr": None, "n": 9}
    (tmp_path / "rows.jsonl").write_text(json.dumps(old))
    [row] = read_rows(tmp_path / "rows.jsonl")
    assert (row.value, row.seed, row.versions) == (1.5, None, "")


def test_a_foreign_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"model": "m"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1, is not a row"):
        read_rows(tmp_path / "rows.jsonl")


def row(method, language, metric, value, model="m"):
    return Row(model, method, "none", language, "perplexity", metric, value, 0.5, 10)


def test_tables():
    values = {("float", "en"): 2.0, ("float", "sw"): 3.0, ("rtn", "en"): 2.1, ("rtn", "sw"): 3.5}
    rows = [
        row(method, language, metric, value)
        for (method, language), value in values.items()
        for metric in ("token_loss", "perplexity", "bits_per_byte")
    ]
    assert rise_table(rows) == [
        ["language", "rtn"],
        ["en", "+0.100"],
        ["sw", "+0.500"],
        ["mean", "+0.300"],
        ["worst", "+0.500"],
    ]
    assert perplexity_table(rows)[1] == ["en", "2.00 ± 0.50 (2.000)", "2.10 ± 0.50 (2.100)"]
    assert markdown(rise_table(rows)).splitlines()[:2] == [
        "| language |    rtn |",
        "| -------- | -----: |",
    ]
    assert metric_table(rows, "perplexity")[-1] == ["mean", "2.500", "2.800"]
    with pytest.raises(ValueError, match="A rise needs two models"):
        rise_table(rows[:6])


def test_models_of_one_method_are_told_apart_by_name():
    rows = [row("rtn", "en", metric, 1.0, model) for model in "ab" for metric in ("token_loss",)]
    assert rise_table(rows)[0] == ["language", "rtn b"]


def test_the_definition_says_how(tokenizer):
    said = definition(tokenizer, tokens=3072, seq_len=512, separator="eos")
    for part in ("3,072 tokens", "context 512", "stride 512", "eos </s> after each document"):
        assert part in said


def test_models_in_memory_have_columns_of_their_own(folder):
    four, eight = (
        mlcalib.quantize(folder, method="rtn", bits=bits, group_size=32) for bits in (4, 8)
    )
    options = {"languages": "en", "tokens": 64, "seq_len": 32}
    rows = mlcalib.evaluate([folder, four, eight], **options)
    assert {row.model for row in rows} == {
        *(str(folder), f"{folder} (bits 4)", f"{folder} (bits 8)")
    }
    header, *_ = perplexity_table(rows)
    assert len(set(header)) == 4
    named = mlcalib.evaluate({"coarse": four, "fine": eight}, **options)
    assert {row.model for row in named} == {"coarse", "fine"}
    assert {row.value for row in named} < {row.value for row in rows}
    for alike in ([folder, folder], [four, four]):
        with pytest.raises(ValueError, match="could not tell them apart"):
            mlcalib.evaluate(alike, **options)


def test_documents_are_a_corpus(folder, tokenizer):
    given = {"sw": [TEXT[0]] * 20, "zh": [TEXT[1]] * 20}
    rows = mlcalib.evaluate(folder, corpus=given, tokens=64, seq_len=32)
    assert {row.language for row in rows} == {"sw", "zh"}
    with pytest.raises(ValueError, match="no text in 'en'; it has: sw, zh"):
        mlcalib.evaluate(folder, "en", given, tokens=64, seq_len=32)
    for wrong in ("text", [[{"role": "user", "content": "text"}]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="other things than strings in 'en'"):
            mlcalib.evaluate(folder, corpus={"en": wrong}, tokens=64, seq_len=32)
