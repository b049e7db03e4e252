"""``mlcalib generate``, ``judge`` and ``annotate`` as the shell runs them."""

import json
import re
import sys

import pytest
from small_models import tiny_llama
from small_tasks import write_all
from transformers import LlamaForSequenceClassification

from mlcalib.cli import main
from mlcalib.judging import Source, read_generations, read_key, read_source
from mlcalib.results.generations import write_generations
from mlcalib.results.rows import read_rows


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """Two models and a file of prompts."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        model = tiny_llama(vocabulary=384, seed=seed)
        model.config.max_position_embeddings = 4096
        model.save_pretrained(folder / str(seed))
        tokenizer.save_pretrained(folder / str(seed))
    rows = [
        {"id": number, "inputs": f"{word} {number}", "language": code, "script": "Latn"}
        for code, word in (("eng", "Name"), ("swa", "Taja"))
        for number in range(3)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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


def test_generate_judge_and_annotate(run, models, tmp_path):
    answers = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for seed, path in enumerate(answers):
        code, text, error = run(
            "generate", models / str(seed), "--prompts", models / "prompts.jsonl", "--out", path,
            "--max-tokens", 4, "--languages", "sw,en", "--limit", 2,
        )  # fmt: skip
        assert code == 0, error
        assert text.startswith("device: ")
        assert text.endswith(f"\n4 answers in {path}\n")
        assert {each.language for each in read_generations(path)} == {"sw", "en"}

    out, table = tmp_path / "judgements.jsonl", tmp_path / "rates.json"
    code, text, error = run(
        "judge",
        *answers,
        "--model",
        models / "0",
        "--out",
        out,
        "--table",
        table,
        "--rows",
        tmp_path / "judged.jsonl",
    )
    assert code == 0, error
    assert re.search(r"^\| all +\| +4 \| +8 \| ", text, re.MULTILINE)
    for part in (
        "Wilson",
        "Position: ",
        "in both orders",
        f"Win rate of {models / '1'} (float) over {models / '0'} (float)",
    ):
        assert part in text
    content = json.loads(table.read_text())
    assert set(content["win_rates"]) == {"sw", "en", "all"}
    assert content["position_bias"]["both"] == 4
    assert len(out.read_text().splitlines()) == 8
    rows = read_rows(tmp_path / "judged.jsonl")
    assert [(row.model, row.method, row.language, row.metric, row.n) for row in rows] == [
        (str(models / "1"), "float", code, "win_rate", 2) for code in ("sw", "en")
    ]

    page = tmp_path / "rate.html"
    code, text, error = run("annotate", *answers, "--out", page, "--question", "Which is best?")
    assert code == 0, error
    assert "4 pairs in" in text
    assert "Which is best?" in page.read_text()
    key = read_key(tmp_path / "rate.key.json")
    assert key.models == tuple(Source(str(models / name), "float") for name in "01")

    files = []
    for rater in ("ada", "ben"):
        ratings = [
            {"id": each.id, "language": each.language, "left": 0, "seconds": 1, "time": "",
             "better": int(not key.swapped[each.language][each.id])}
            for each in read_generations(answers[0])
        ]  # fmt: skip
        files.append(tmp_path / f"{rater}.json")
        files[-1].write_text(
            json.dumps(
                {"format": "mlcalib ratings 1", "fingerprint": key.fingerprint, "rater": rater,
                 "languages": ["en", "sw"], "items": 4, "ratings": ratings}
            )
        )  # fmt: skip
    code, text, error = run(
        "annotate", "--score", *files, "--key", tmp_path / "rate.key.json", "--out", table,
        "--rows", tmp_path / "rated.jsonl",
    )  # fmt: skip
    assert code == 0, error
    assert re.search(
        r"^\| en +\| +2 \| +4 \| 100.0 \[34.2, 100.0\] \| 2-0-0 \|", text, re.MULTILINE
    )
    assert "Position: the answer on the left won" in text
    assert [row.value for row in read_rows(tmp_path / "rated.jsonl")] == [1, 1]
    assert json.loads(table.read_text())["scores"]["all"]["win_rate"]["wins"] == 4


def test_generations_of_an_evaluation_are_judged_and_annotated(run, models, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from mlcalib.evaluation.tasks.model import TaskModel

    def write(lm, requests, **_):  # hundreds of tokens take a minute
        return [f"{lm.model.lm_head.weight[0, at]:.6f}" for at in range(len(requests))]

    monkeypatch.setattr(TaskModel, "generate_until", write)
    written = tmp_path / "written"
    code, _, error = run(
        "evaluate", models / "0", models / "1", "--tasks", "dolly,xlsum,flores,language_confusion",
        "--languages", "sw,zh", "--data", write_all(tmp_path / "data"), "--limit", 1,
        "--generations", written,
    )  # fmt: skip
    assert code == 0, error
    names = sorted(path.name for path in (written / "1-0").iterdir())
    assert names == [
        "dolly.jsonl",
        "flores_from_en.jsonl",
        "flores_to_en.jsonl",
        "language_confusion_crosslingual.jsonl",
        "language_confusion_monolingual.jsonl",
        "xlsum.jsonl",
    ]
    for name in names:
        files = [written / "1-0" / name, written / "2-1" / name]
        generations = read_generations(files[0])
        assert generations
        assert read_source(files[1]) == Source(str(models / "1"), "float")
        page = tmp_path / f"{name}.html"
        code, text, error = run("annotate", *files, "--out", page)
        assert code == 0, error
        assert f"{len(generations)} pairs in" in text
        assert json.dumps(generations[0].prompt, ensure_ascii=False) in page.read_text()
    files = [written / folder / "flores_to_en.jsonl" for folder in ("1-0", "2-1")]
    out = tmp_path / "judged.jsonl"
    code, text, error = run("judge", *files, "--model", models / "0", "--out", out)
    assert code == 0, error
    assert re.search(r"^\| all +\| +2 \| +4 \| ", text, re.MULTILINE)


def test_generate_writes_the_same_layout(run, models, tmp_path):
    """What every command writes, beside what it alone knows (``finished``, ``task``, …)."""
    run("generate", models / "0", "--prompts", models / "prompts.jsonl", "--out", tmp_path / "a",
        "--max-tokens", 2, "--limit", 1)  # fmt: skip
    found = read_generations(tmp_path / "a")
    write_generations(found, Source("m"), tmp_path / "b", task="mine")
    rows = [json.loads((tmp_path / name).read_text().splitlines()[0]) for name in "ab"]
    assert rows[0].keys() - {"finished", "fingerprint"} == rows[1].keys() - {"task"}
    assert read_generations(tmp_path / "b") == found


def test_annotate_generates(run, models, tmp_path):
    page = tmp_path / "rate.html"
    options = ("--prompts", models / "prompts.jsonl", "--max-tokens", 3, "--out", page)
    code, text, error = run("annotate", models / "0", models / "1", *options)
    assert code == 0, error
    assert "6 pairs" in text
    assert len(read_generations(tmp_path / "rate.generations" / "second.jsonl")) == 6


def test_a_reward_model_takes_no_template(run, models, tokenizer, tmp_path):
    config = tiny_llama(vocabulary=384).config
    config.num_labels, config.pad_token_id = 1, 1
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    for name in ("a", "b"):
        row = {"id": 1, "language": "en", "prompt": "?", "output": name}
        (tmp_path / name).write_text(json.dumps(row))
    (tmp_path / "question").write_text("{prompt} {first} {second}")
    given = ("judge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--model")
    code, _, error = run(*given, tmp_path / "reward", "--template", tmp_path / "question")
    assert (code, "which reads no --template" in error) == (1, True)
    code, _, error = run(*given, models / "0", "--margin", 0.1)
    assert (code, "--margin is only for reward models" in error) == (1, True)
    code, text, error = run(*given, tmp_path / "reward", "--margin", 1e6)
    assert code == 0, error
    assert re.search(r"^\| en +\| +1 \| +1 \| +50\.0 \[", text, re.MULTILINE), text
    assert "reads one answer at a time" in text


def test_sources(run, models, tmp_path):
    checkpoint, answers = tmp_path / "rtn", tmp_path / "answers.jsonl"
    run("quantize", models / "0", "--out", checkpoint, "--method", "rtn", "--group-size", 32,
        "--format", "dense")  # fmt: skip
    code, _, error = run(
        "generate", checkpoint, "--prompts", models / "prompts.jsonl", "--out", answers,
        "--limit", 1, "--max-tokens", 2,
    )  # fmt: skip
    assert code == 0, error
    assert read_source(answers) == Source(str(checkpoint), "rtn", "none")
    assert str(Source("m", "gptq", "multi10")) == "m (gptq multi10)"
    answers.write_text('{"id": 1}')
    assert read_source(answers) == Source(str(answers))
    (checkpoint / "mlcalib.json").write_text("{}")
    code, _, error = run(
        "generate", checkpoint, "--prompts", models / "prompts.jsonl", "--out", tmp_path / "new"
    )
    assert (code, "is not a record that mlcalib wrote" in error) == (1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["annotate", "a", "b"], r"--out is None, expected the page to write, NAME\.html"),
        (["annotate", "a", "--out", "{tmp}/x.html"], "1 were given to compare; give two"),
        (["annotate", "{tmp}/a", "b", "--out", "{tmp}/x.html"], "No such file.*/a"),
        (["annotate", "a", "b", "--key", "k", "--out", "x.html"], "--key is given without --score"),
        (["annotate", "--score", "a"], "--score needs --key"),
        (["annotate", "--score", "a", "--key", "{tmp}/k"], "No such file.*/k"),
        (["generate", "m", "--prompts", "{tmp}/p", "--out", "{tmp}/o"], "No such file.*/p"),
        (
            ["generate", "{models}/0", "--prompts", "{models}/prompts.jsonl", "--out", "{tmp}/o",
             "--languages", "fr"],
            "has no prompt in fr; it has: en, sw",
        ),
        (["generate", "/x", "--prompts", "{models}/prompts.jsonl", "--out", "{tmp}/o"], "no mod"),
        (["judge", "{tmp}/a", "{tmp}/b", "--model", "m", "--out", "{tmp}/o"], "No such file.*/a"),
    ],
)  # fmt: skip
def test_errors_are_one_message_and_leave_nothing(run, models, tmp_path, args, message):
    code, _, error = run(*(arg.format(tmp=tmp_path, models=models) for arg in args))
    assert code == 1
    assert "Traceback" not in error
    assert re.search(message, error, re.DOTALL), error
    assert list(tmp_path.iterdir()) == []
