"""Benchmark tasks on small files of every data set: scores, items, what is missing, no network."""

import copy
import json
import logging
import re
import shutil
import socket
from statistics import stdev

import pytest
import torch
from small_models import tiny_llama
from small_tasks import global_mmlu, write_all, xnli
from typer.testing import CliRunner

pytest.importorskip("lm_eval")

import datasets

import mlcalib
from mlcalib.cli import app
from mlcalib.evaluation.tasks import run_tasks, task_names
from mlcalib.evaluation.tasks.catalogue import find_task, task_languages
from mlcalib.evaluation.tasks.model import TaskModel
from mlcalib.evaluation.tasks.stock import stock_task
from mlcalib.report.tables.tasks import task_table
from mlcalib.results.rows import read_results, read_rows

STOCK = "xnli,xstorycloze,xcopa,belebele,afrixnli,afrimmlu,global_mmlu,global_mmlu_full,mmmlu"
LANGUAGES = ["sw", "st", "xh", "ig"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model():
    model = tiny_llama(vocabulary=384)
    model.config.max_position_embeddings = 2048
    return model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def writing(monkeypatch):
    """Let the model write what the test says, by what the prompt ends with or holds."""
    answers, asked = {}, []

    def generate(self, requests, disable_tqdm=False):
        asked.extend(request.args for request in requests)
        return [
            next((answer for part, answer in answers.items() if part in request.args[0]), "")
            for request in requests
        ]

    monkeypatch.setattr(TaskModel, "generate_until", generate)
    return answers, asked


def run(model, tokenizer, tasks, languages, data, **options):
    return run_tasks(model, tokenizer, tasks, languages, data=data, progress=False, **options)


@pytest.fixture(scope="module")
def stock(model, tokenizer, data):
    return run(model, tokenizer, STOCK, LANGUAGES, data, method="gptq", calibration="multi10")


def test_every_stock_task_runs_on_files_of_its_schema(stock):
    counts = {(row.task, row.language): row.n for row in stock.rows if row.metric == "acc"}
    assert counts == {
        ("xnli", "sw"): 4,
        ("xstorycloze", "sw"): 3,
        ("xcopa", "sw"): 3,
        ("belebele", "st"): 3,
        ("afrixnli", "xh"): 4,
        ("afrimmlu", "xh"): 2,
        ("global_mmlu", "sw"): 4,
        ("global_mmlu_full", "ig"): 4,
        ("mmmlu", "sw"): 4,
    }
    assert {(row.model, row.method, row.calibration) for row in stock.rows} == {
        ("model", "gptq", "multi10")
    }


def test_values_and_errors_are_those_of_the_items(stock):
    for row in stock.rows:
        if row.metric == "acc":
            items = stock.items[row.task][row.language]
            assert set(items) <= {0.0, 1.0}
            assert row.value == pytest.approx(sum(items) / len(items))
            assert row.stderr == pytest.approx(stdev(items) / len(items) ** 0.5)


def test_items_are_what_the_plainest_scoring_gives(stock, model, tokenizer):
    def loss(text):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()

    words = ("Ndio", "Hivyo", "Hapana")
    right = []
    for row in xnli():
        texts = [f" {row['premise']}, sahihi? {word}, {row['hypothesis']}" for word in words]
        losses = [loss(text) for text in texts]
        right.append(float(losses.index(min(losses)) == row["label"]))
    assert stock.items["xnli"]["sw"] == right


def test_a_language_without_the_task_says_so_and_what_fills_in(stock):
    cells = {(cell.task, cell.language): str(cell) for cell in stock.missing}
    assert cells["xnli", "xh"] == "no task (try afrixnli)"
    assert cells["global_mmlu", "ig"] == "no task (try global_mmlu_full or afrimmlu or belebele)"
    assert cells["afrixnli", "st"] == "no data file"
    have = {(row.task, row.language) for row in stock.rows}
    assert have.isdisjoint(cells)
    assert have | cells.keys() == {(task, code) for task in STOCK.split(",") for code in LANGUAGES}


def test_a_missing_file_is_named_with_where_it_can_be_had(model, tokenizer, data, caplog):
    with pytest.raises(FileNotFoundError) as error:
        run(model, tokenizer, "mmmlu", ["yo"], data)
    assert "mmmlu/yo_ng/test.jsonl" in str(error.value)
    assert "openai/MMMLU" in str(error.value)
    with caplog.at_level(logging.WARNING):
        run(model, tokenizer, "xnli", ["sw", "fr"], data, limit=1)
    assert "xnli/fr/validation.jsonl" in caplog.text


CATEGORIES = ("Business", "Humanities", "Medical", "Other", "STEM", "Social Sciences")


@pytest.mark.parametrize(
    ("task", "code", "split", "hub"),
    [
        ("xnli", "sw", "validation", "facebook/xnli"),
        ("global_mmlu", "sw", "test", "CohereForAI/Global-MMLU-Lite"),
    ],
)
def test_local_files_score_as_the_hub_does(
    model, tokenizer, tmp_path, monkeypatch, task, code, split, hub
):
    """The hub is played by a function that gives the same rows under the hub's names."""
    rows = xnli() if task == "xnli" else global_mmlu(CATEGORIES, "subject_category")
    path = tmp_path / task / code / f"{split}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    local = run(model, tokenizer, task, code, tmp_path)
    asked = set()

    def load_dataset(path, name=None, **options):
        asked.add((path, name))
        given = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(dict.fromkeys(("train", "dev", "validation", "test"), given))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    online = run(model, tokenizer, task, code, None)
    assert asked == {(hub, code)}
    assert online.items == local.items
    assert online.rows == local.rows


def test_parquet_gives_what_jsonl_gives(model, tokenizer, data, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")

    path = tmp_path / "xnli" / "sw" / "validation.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(xnli()), path)
    found, wanted = (run(model, tokenizer, "xnli", "sw", folder) for folder in (tmp_path, data))
    assert found.rows == wanted.rows


@pytest.mark.parametrize("tasks", ["xnli", "dolly", "xnli,dolly", "mgsm"])
def test_tokens_without_an_embedding_are_refused_before_anything_runs(
    tasks, model, tokenizer, data, monkeypatch
):
    small, ran = tiny_llama(vocabulary=100), []
    monkeypatch.setattr(type(small), "forward", lambda *_, **__: ran.append(1))
    with pytest.raises(
        ValueError, match=r"A text of the tasks has the token \d+ \('.*'\), but.*100"
    ):
        run(small, tokenizer, tasks, "sw", data)
    assert not ran


def test_an_array_gives_what_jsonl_gives(model, tokenizer, data, tmp_path):
    path = tmp_path / "xnli" / "sw" / "validation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(xnli()))
    found, wanted = (run(model, tokenizer, "xnli", "sw", folder) for folder in (tmp_path, data))
    assert found.rows == wanted.rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"premise": "a", "label": 0}\n', "no field 'hypothesis'"),
        ("{\n", "line 1, is not JSON"),
        ("[1]\n", "line 1, is a JSON list; an object was expected"),
        ("", "has no rows"),
    ],
)
def test_a_file_of_another_kind_is_named(model, tokenizer, tmp_path, text, message):
    path = tmp_path / "xnli" / "sw" / "validation.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        run(model, tokenizer, "xnli", "sw", tmp_path)


def test_an_unknown_subject_is_named(model, tokenizer, tmp_path):
    path = tmp_path / "global_mmlu_full" / "ig" / "test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, global_mmlu(("cookery",), "subject"))))
    with pytest.raises(ValueError, match="'cookery', which is no subject"):
        run(model, tokenizer, "global_mmlu_full", "ig", tmp_path)


def test_mgsm_finds_the_number_and_keeps_what_was_written(model, tokenizer, data, writing):
    answers, asked = writing
    answers |= {"0 fish": " Jibu ni 1.", "1 fish": " 7"}
    found = run(model, tokenizer, "mgsm,mgsm_native_cot", "sw", data)
    assert found.items == {"mgsm": {"sw": [1.0, 0.0]}, "mgsm_native_cot": {"sw": [1.0, 0.0]}}
    row = next(row for row in found.rows if row.task == "mgsm")
    assert (row.metric, row.value) == ("exact_match,flexible-extract", 0.5)
    first = found.generations["mgsm"]["sw"][0]
    assert (first.output, first.reference) == (" Jibu ni 1.", "1")
    assert asked[0][0].startswith("Swali: One fish")


def test_translations_go_both_ways_and_say_what_they_lack(model, tokenizer, data, writing):
    answers, asked = writing
    answers |= {"English sentence: The market opens. 2": "市场在日出前开门。 2"}
    answers |= {"English sentence:": "市场"}
    found = run(model, tokenizer, "flores", "zh,en", data)
    assert asked[0][0] == "English sentence: The market opens. 1\nChinese sentence:"
    assert asked[0][1]["until"] == ["\n"]
    metrics = {(row.task, row.metric): row for row in found.rows}
    assert metrics.keys() == {
        ("flores_from_en", "chrf++"),
        ("flores_from_en", "bleu_zh"),
        ("flores_to_en", "chrf++"),
        ("flores_to_en", "bleu_13a"),
    }
    items = found.items["flores_from_en"]["zh"]
    assert items[1] == 100
    assert items[0] < 50
    assert metrics["flores_to_en", "chrf++"].value == 0
    cells = {(cell.task, cell.language, cell.metric): cell.reason for cell in found.missing}
    assert cells == {
        ("flores_from_en", "zh", "spbleu"): "tokenizer not available",
        ("flores_to_en", "zh", "spbleu"): "tokenizer not available",
        ("flores", "en", None): "no task",
    }


def test_a_long_article_is_cut_at_its_end(model, tokenizer, data, writing):
    answers, asked = writing
    answers["Article"] = "Soko hufunguliwa mapema."
    found = run(model, tokenizer, "xlsum", "sw", data, max_length=512)
    assert {row.metric: row.value for row in found.rows} == {"rouge_l": 100.0, "chrf++": 100.0}
    prompt = asked[0][0]
    assert prompt.startswith("Article in Swahili: Soko hufunguliwa kabla")
    assert prompt.endswith("\nSummary in Swahili, in one sentence:")
    assert len(tokenizer.encode(prompt)) <= 512 - 128


def test_language_confusion_by_setting(model, tokenizer, data, writing):
    answers, asked = writing
    answers["市场"] = "市场在日出前开门。第一批买家已经在路边等候。"
    found = run(model, tokenizer, "language_confusion", "zh,sw", data, limit=2)
    rates = {(row.task, row.metric): (row.value, row.n) for row in found.rows}
    assert rates == {
        (f"language_confusion_{setting}", f"{level}_pass_rate"): (1.0, 2)
        for setting in ("monolingual", "crosslingual")
        for level in ("line", "word")
    }
    assert asked[0][0] == "Q: 市场在哪里。\nA:"
    assert [(cell.language, cell.reason) for cell in found.missing] == [("sw", "no task")]


def test_dolly_is_generated_with_the_chat_template(model, tokenizer, data, writing):
    answers, asked = writing
    answers["Soko"] = "Ni mahali."
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    found = run(model, tokenizer, "dolly", "sw", data)
    assert asked[0][0] == "[user] Soko ni nini?"
    assert found.rows == []
    assert [str(cell) for cell in found.missing] == ["2 generations, to be judged"]
    assert [each.output for each in found.generations["dolly"]["sw"]] == ["Ni mahali."] * 2


def test_a_real_model_writes(model, tokenizer, data):
    found = run(model, tokenizer, "language_confusion", "zh", data, limit=1)
    assert len(found.generations["language_confusion_monolingual"]["zh"]) == 1


def test_limit_takes_the_first(model, tokenizer, data, stock):
    found = run(model, tokenizer, "xnli,belebele", "sw,st", data, limit=2)
    for task, code in (("xnli", "sw"), ("belebele", "st")):
        assert found.items[task][code] == stock.items[task][code][:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "xnly"}, "Did you mean 'xnli'"),
        ({"languages": "swa"}, "Unknown"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_mistakes_are_named(model, tokenizer, data, options, message):
    given = {"tasks": "xnli", "languages": "sw", "data": data, **options}
    with pytest.raises(ValueError, match=message):
        run(model, tokenizer, **given)


def test_a_live_model_needs_its_tokenizer(model, data):
    with pytest.raises(ValueError, match="without its tokenizer"):
        run(model, None, "xnli", "sw", data)


def test_a_folder_is_loaded(model, tokenizer, data, tmp_path, stock):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = run(str(tmp_path / "model"), None, "xnli", "sw", data)
    assert found.items["xnli"] == stock.items["xnli"]
    assert found.rows[0].model == str(tmp_path / "model")


def test_a_data_folder_must_exist(model, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run(model, tokenizer, "xnli", "sw", tmp_path / "none")


def test_every_task_has_a_language(data):
    for name in task_names():
        assert task_languages(find_task(name))


def test_every_code_of_the_catalogue_has_a_task_file():
    """``languages.yaml`` is what says that a task has a language; lm-eval must agree."""
    lacking = {
        (name, each.code)
        for name in task_names()
        if find_task(name).files
        for each in task_languages(find_task(name))
        if stock_task(find_task(name), each) is None
    }
    assert lacking == {("mgsm_native_cot", "ca"), ("mgsm_native_cot", "gl")}


def test_the_harness_is_left_as_it_was(model, tokenizer, data):
    from lm_eval.api import task

    before, level = task.tqdm, logging.getLogger("lm_eval").level
    run(model, tokenizer, "xcopa", "sw", data, limit=1)
    assert task.tqdm is before
    assert logging.getLogger("lm_eval").level == level


def test_nothing_is_left_in_the_data_folder(model, tokenizer, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    run(model, tokenizer, "xcopa", "sw", tmp_path / "data", limit=1)
    names = {path.name for path in (tmp_path / "data").rglob("*")}
    assert names == {path.name for path in data.rglob("*")}


def test_several_models_by_folder_with_their_records(model, tokenizer, data, tmp_path, stock):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    mlcalib.quantize(
        str(tmp_path / "model"), method="rtn", bits=4, group_size=64, progress=False
    ).save(tmp_path / "rtn")
    folders = [tmp_path / "model", tmp_path / "rtn"]
    found = mlcalib.evaluate(
        folders, "sw,xh", tasks="xnli", dtype="float32", data=data, progress=False
    ).tasks
    assert [(each.rows[0].method, each.rows[0].model) for each in found] == [
        ("float", str(folders[0])),
        ("rtn", str(folders[1])),
    ]
    assert found[0].items["xnli"] == stock.items["xnli"]
    missing = {(cell.task, cell.language, cell.metric): str(cell) for cell in found[0].missing}
    rows = [row for each in found for row in each.rows]
    value, error = rows[0].value * 100, rows[0].stderr * 100
    table = task_table(rows, missing)
    assert table[0] == ["task", "metric", "language", "n", "float", "rtn"]
    assert table[1][:5] == ["xnli", "acc", "sw", "4", f"{value:.1f} ± {error:.1f}"]
    assert table[2] == ["xnli", "", "xh", "0", *["no task (try afrixnli)"] * 2]


def test_rows_say_what_computed_them(stock):
    assert all("lm_eval 0.4" in row.versions for row in stock.rows)
    assert all(row.seed is None for row in stock.rows)


def test_generations_are_written(model, tokenizer, data, writing, tmp_path):
    answers, _ = writing
    answers["Soko"] = "Ni mahali."
    found = run(model, tokenizer, "dolly,flores", "sw", data, limit=2, method="rtn")
    paths = found.write_generations(tmp_path / "out")
    assert [path.name for path in paths] == [
        "dolly.jsonl",
        "flores_from_en.jsonl",
        "flores_to_en.jsonl",
    ]
    rows = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [(row["id"], row["language"], row["output"]) for row in rows] == [
        ("0", "sw", "Ni mahali."),
        ("1", "sw", "Ni mahali."),
    ]
    assert rows[0]["method"] == "rtn"
    assert {row.seed for row in found.rows} == {0}


def test_the_command_line(tokenizer, model, data, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = [
        *("evaluate", str(tmp_path / "model"), "--tasks", "xnli,perplexity", "--languages", "sw"),
        *("--data", str(data), "--limit", "2", "--tokens", "64", "--seq-len", "32"),
        *("--dtype", "float32", "--out", str(tmp_path / "rows.jsonl")),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert re.search(r"\| xnli +\| +acc \| +sw \| +2 \|", done.output)
    tasks = [(row.task, row.metric, row.n) for row in read_rows(tmp_path / "rows.jsonl")]
    assert ("xnli", "acc", 2) in tasks
    assert ("perplexity", "token_loss", 64) in tasks
    items = {each.task: each for each in read_results(tmp_path / "rows.jsonl").items}
    assert len(items["xnli"].values) == 2
    assert set(items["xnli"].values) <= {0.0, 1.0}
    assert sum(items["perplexity"].sizes) == 64
    for change, message in (
        (["--tasks", "xnly"], "Did you mean 'xnli'"),
        (["--tasks", "xnli", "--fidelity"], "--fidelity needs the task perplexity"),
    ):
        failed = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), *change])
        assert message in str(failed.exception)
