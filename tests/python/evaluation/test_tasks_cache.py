"""Benchmark tasks that were run once are not run again; an interrupted run goes on."""

import json
import shutil

import pytest
from small_models import tiny_llama
from small_tasks import write_all

pytest.importorskip("lm_eval")

import mlcalib
from mlcalib.evaluation import subject
from mlcalib.evaluation.tasks import kept
from mlcalib.evaluation.tasks.model import TaskModel
from mlcalib.models.loading import load_model

TASKS, LANGUAGES = "xcopa,xnli,dolly", "sw,xh"  # XNLI has no Xhosa, XCOPA neither


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama(vocabulary=384)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def runs(monkeypatch):
    """The (task, languages …) that were run together."""
    inner, found = kept.run_tasks, []

    def run(model, tokenizer, tasks, languages, **options):
        if len(tasks) == 1:  # as every run that keeps what it finds
            found.append((*tasks, *languages))
        return inner(model, tokenizer, tasks, languages, **options)

    monkeypatch.setattr(kept, "run_tasks", run)
    monkeypatch.setattr(
        TaskModel, "generate_until", lambda _, requests, **__: ["Habari."] * len(requests)
    )
    return found


def evaluate(folder, data, tasks=TASKS, languages=LANGUAGES, **options):
    options = {"dtype": "float32", "limit": 2, "progress": False, **options}
    results = mlcalib.evaluate(folder, languages, tasks=tasks, data=data, **options)
    [found] = results.tasks
    assert results == found.rows
    return found


def test_results_are_those_of_a_run_that_keeps_nothing(folder, data, runs, tmp_path, monkeypatch):
    plain = evaluate(folder, data)
    assert runs == []
    first = evaluate(folder, data, cache=tmp_path)
    assert len(runs) == 5  # there is no file of Dolly in Xhosa
    monkeypatch.setattr(subject, "load_to_run", None)
    again = evaluate(folder, data, cache=tmp_path)
    assert len(runs) == 5
    order = [(row.task, row.language) for row in plain.rows].index
    for found in (first, again):
        assert sorted(found.rows, key=lambda row: order((row.task, row.language))) == plain.rows
        assert found.items == plain.items
        assert found.generations == plain.generations
        assert set(found.missing) == set(plain.missing)


def test_fields_that_a_later_version_keeps_are_left_out(folder, data, runs, tmp_path):
    first = evaluate(folder, data, "xnli", "sw", cache=tmp_path)
    [path] = (tmp_path / "benchmarks").iterdir()
    content = json.loads(path.read_text())
    content["value"]["rows"][0]["later"] = 1
    content["value"]["missing"] = [
        {"task": "xnli", "language": "sw", "metric": None, "reason": "r", "fillers": [], "": 1}
    ]
    path.write_text(json.dumps(content))
    again = evaluate(folder, data, "xnli", "sw", cache=tmp_path)
    assert len(runs) == 1
    assert again.rows == first.rows
    assert [str(cell) for cell in again.missing] == ["r"]


def test_an_interrupted_run_goes_on(folder, data, runs, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "generate_until", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, data, cache=tmp_path)
    assert runs.pop() == ("dolly", "sw")
    done = len(runs)
    assert done == 4
    found = evaluate(folder, data, cache=tmp_path)
    assert runs[done:] == [("dolly", "sw")]
    assert found.rows == evaluate(folder, data, cache=tmp_path / "other").rows


def test_languages_of_few_prompts_are_generated_together(folder, data, runs, tmp_path):
    plain = evaluate(folder, data, "flores", "sw,zh")
    runs.clear()
    assert evaluate(folder, data, "flores", "zh", cache=tmp_path).rows
    assert runs == [("flores", "zh")]
    together = evaluate(folder, data, "flores", "sw,zh", cache=tmp_path / "new")
    assert runs[1:] == [("flores", "sw", "zh")]
    again = evaluate(folder, data, "flores", "zh,sw", cache=tmp_path / "new")
    assert len(runs) == 2
    for found in (together, again):
        assert sorted(found.rows, key=str) == sorted(plain.rows, key=str)
        assert found.items == plain.items
        assert found.generations == plain.generations
    evaluate(folder, data, "flores", "sw,zh", cache=tmp_path / "all", limit=None)
    assert runs[2:] == [("flores", "sw"), ("flores", "zh")]


def test_what_changes_results_is_noticed(folder, data, runs, tmp_path):
    shutil.copytree(data, tmp_path / "data")

    def run_again(**options):
        before = len(runs)
        evaluate(folder, tmp_path / "data", "xcopa", "sw", cache=tmp_path / "cache", **options)
        return len(runs) - before

    assert run_again() == 1
    assert run_again() == 0
    assert run_again(limit=1) == 1
    assert run_again(dtype="bfloat16") == 1
    [file] = [path for path in (tmp_path / "data" / "xcopa").rglob("*") if path.is_file()]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(reversed(lines)))
    assert run_again() == 1


def test_a_missing_file_is_told_as_without_a_cache(folder, data, runs, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "dolly")
    with pytest.raises(FileNotFoundError, match="task 'dolly', language 'sw'"):
        evaluate(folder, tmp_path / "data", "dolly", cache=tmp_path / "cache")
    shutil.copytree(data / "dolly", tmp_path / "data" / "dolly")
    plain = evaluate(folder, tmp_path / "data", "dolly")
    for _ in range(2):
        caplog.clear()
        found = evaluate(folder, tmp_path / "data", "dolly", cache=tmp_path / "cache")
        assert "task 'dolly', language 'xh'" in caplog.text
        assert set(found.missing) == set(plain.missing)
        assert found.generations == plain.generations


def test_one_call_measures_text_and_tasks(folder, data, runs, tokenizer, tmp_path):
    """Of a live model, as in a notebook; the same as of its folder, and as of each alone."""
    live = load_model(str(folder), "float32")
    options = {"tokens": 100, "seq_len": 32, "data": data, "limit": 2, "progress": False}
    found = mlcalib.evaluate(
        model=live, tokenizer=tokenizer, languages="sw,xh", tasks=["perplexity", "xcopa"], **options
    )
    assert [(row.task, row.language) for row in found] == [
        *[("perplexity", code) for code in ("sw", "xh") for _ in range(3)],
        ("xcopa", "sw"),
    ]
    assert [len(each.items["xcopa"]["sw"]) for each in found.tasks] == [2]
    assert [str(cell) for cell in found.tasks[0].missing] == ["no task (try belebele)"]
    options |= {"dtype": "float32", "cache": tmp_path}
    runs.clear()
    again = [
        mlcalib.evaluate(folder, "sw,xh", tasks=tasks, **options)
        for tasks in ("perplexity", "xcopa", "perplexity,xcopa")
    ]
    assert again[0].tasks == []
    assert runs == [("xcopa", "sw"), ("xcopa", "xh")]  # what is known serves
    assert again[2] == [*again[0], *again[1]]
    values = [[(row.task, row.metric, row.value) for row in each] for each in (found, again[2])]
    assert values[0] == values[1]


def test_bad_input_is_told_before_a_model_is_loaded(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "load_to_run", None)
    options = {"data": data, "progress": False}
    with pytest.raises(ValueError, match="Did you mean 'xnli'"):
        mlcalib.evaluate(folder, "sw", tasks="perplexity,xnly", **options)
    with pytest.raises(ValueError, match="the tasks are xnli; add perplexity"):
        mlcalib.evaluate([folder, folder], "sw", tasks="xnli", fidelity=True, **options)
    with pytest.raises(FileNotFoundError, match=r"The data folder .* does not exist"):
        mlcalib.evaluate(folder, "sw", tasks="perplexity,xnli", data=tmp_path / "none")
    for task in ("xnli", "flores", "xlsum", "language_confusion", "dolly"):
        with pytest.raises(FileNotFoundError, match=f"task '{task}', language 'zh'"):
            mlcalib.evaluate(folder, "zh", tasks=f"perplexity,{task}", data=tmp_path)
