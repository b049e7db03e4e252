"""The report of an evaluation: its numbers by hand, its page, and what it refuses."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_files import Page, table
from small_evaluation import (
    ANSWERS,
    DIVERGENCE,
    FLOAT,
    GPTQ,
    LOSS,
    RISE,
    TOKENS,
    answers,
    results,
)
from typer.testing import CliRunner

from mlcalib.cli import app
from mlcalib.evaluation.tasks import Missing, TaskResults
from mlcalib.evaluation.tasks.text_metrics import Score
from mlcalib.report import Items, relative_changes, write_evaluation_report
from mlcalib.report.evaluation_report.compared import compare
from mlcalib.results.rows import ItemScores, Results, Row, joined, write_results, write_rows
from mlcalib.results.scores import label


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_results(joined([results(FLOAT), results(GPTQ)]), path)
    return path


@pytest.fixture(scope="module")
def report(rows):
    page = write_evaluation_report(rows, resamples=400)
    assert page == rows.parent / "rows.report" / "report.html"
    return page.parent


def found(report, name, **wanted):
    """The only row of a table that has these values."""
    [row] = [
        row
        for row in table(report / "tables" / f"{name}.csv")
        if all(row[key] == value for key, value in wanted.items())
    ]
    return row


@pytest.mark.parametrize(
    ("task", "code", "change", "p", "p_holm"),
    [
        ("xnli", "en", 0, 1, 1),
        ("xnli", "sw", -10, 2 * 0.5**2, 2 * 2 * 0.5**2),  # 2 lost: the second of three
        ("xnli", "zh", -60, 2 * 0.5**12, 3 * 2 * 0.5**12),  # 12 lost: the first of three
        ("belebele", "xh", -50, 2 * 0.5**5, 2 * 2 * 0.5**5),
    ],
)
def test_changes_and_flips_by_hand(report, task, code, change, p, p_holm):
    row = found(report, "changes", task=task, language=code)
    n, right, lost, gained = ANSWERS[task, code]
    assert float(row["change"]) == pytest.approx(change)
    assert (row["test"], row["n"], row["metric"]) == ("McNemar", str(n), "acc")
    assert float(row["p_holm"]) == pytest.approx(min(1, p_holm))
    assert float(row["change_low"]) <= change <= float(row["change_high"])
    flip = found(report, "flips", task=task, language=code)
    assert [int(flip[key]) for key in ("right_to_wrong", "wrong_to_right", "n")] == [
        lost,
        gained,
        n,
    ]
    assert float(flip["mcnemar_p"]) == pytest.approx(min(1, p))
    assert float(flip["mcnemar_p_holm"]) == pytest.approx(min(1, p_holm))
    score = found(report, "scores", task=task, language=code, model="out/q", missing="")
    assert float(score["value"]) == pytest.approx((right - lost + gained) / n)


def test_averages_and_groups_by_hand(report):
    averages = {
        row["language"]: row
        for row in table(report / "tables" / "changes.csv")
        if row["task"] == "average"
    }
    assert {code: float(row["change"]) for code, row in averages.items()} == pytest.approx(
        {"en": 0, "sw": -10, "zh": -60, "xh": -50}
    )
    assert {code: row["tasks"] for code, row in averages.items()} == {
        "en": "2", "sw": "1", "zh": "1", "xh": "1",
    }  # fmt: skip
    # Against English the tasks in common count: xnli of zh, belebele of xh.
    assert float(averages["zh"]["against_english"]) == pytest.approx(-60)
    assert averages["zh"]["worse_than_english"] == "True"
    for group, mean, counts in (
        ("English", 0, "0 0 2"),
        ("all others", -40, "0 3 0"),
        ("Latin script", -30, "0 2 0"),
        ("other scripts", -60, "0 1 0"),
    ):
        row = found(report, "groups", group=group, task="average")
        assert float(row["mean_change"]) == pytest.approx(mean)
        assert " ".join(row[key] for key in ("wins", "losses", "ties")) == counts
    xnli = found(report, "groups", group="Latin script", task="xnli")
    assert (float(xnli["mean_change"]), xnli["n"], xnli["of"]) == (pytest.approx(-10), "1", "2")


def test_perplexity_by_hand(report):
    for code, loss in LOSS.items():
        row = found(report, "changes", task="perplexity", language=code)
        rise = sum(RISE[code]) / sum(TOKENS)
        assert float(row["change"]) == pytest.approx(-100 * (math.exp(rise) - 1))
        assert (row["test"], row["n"]) == ("bootstrap", str(len(loss)))
    assert not [
        row
        for row in table(report / "tables" / "groups.csv")
        if (row["task"], row["group"]) == ("perplexity", "average")
    ]


def test_the_answer_comes_first(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    answer = text[: text.index("## What quantization changed: tasks")]
    assert "Against `float` (`m`)" in answer
    assert (
        "**gptq en**: 1 of 5 tested task scores is worse than the float model's beyond chance"
        in answer
    )
    assert (
        "(xnli in Chinese \u221260.0\u00a0%), none better; the other 4 differences may be chance"
        in answer
    )
    assert (
        "Perplexity rose beyond chance in 2 of 2 languages, most in Swahili (+35.0\u00a0%)"
        in answer
    )
    kl = {code: sum(values) / sum(TOKENS) for code, values in DIVERGENCE.items()}
    assert f"{sum(kl.values()) / 2:.3g} nats on the mean of 2 languages" in answer


def test_what_is_missing_says_so(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    line = next(
        line for line in text.splitlines() if line.startswith("| isiXhosa") and "try" in line
    )
    assert "no task (try afrixnli)" in line
    assert "1 of 2 tasks" in text
    row = found(report, "changes", task="belebele", language="zh")
    assert (row["missing"], row["change"]) == ("no data file", "")


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inner = [each[1:] for each in page.refers if each.startswith("#")]
    assert set(inner) <= set(page.ids)
    for each in page.refers:
        assert each.startswith(("#", "data:image/png;")) or (report / each).is_file(), each
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object"}
    for anchor in ("answer", "changes", "perplexity", "flips", "fidelity", "scores", "run"):
        assert f'id="{anchor}"' in text
    assert re.search(r"400\s+resamples, seed 0", text)


def test_same_results_same_bytes(rows, report, tmp_path):
    """From one file, from a file a model, or from memory."""
    for at, model in enumerate((FLOAT, GPTQ)):
        write_results(results(model), tmp_path / f"{at}.jsonl")
    files = [tmp_path / "0.jsonl", str(tmp_path / "1.jsonl"), tmp_path / "0.jsonl"]
    sources = {"files": files, "memory": [results(FLOAT), results(GPTQ)]}
    for name, source in sources.items():
        page = write_evaluation_report(source, tmp_path / name / "report.html", resamples=400)
        written = {
            path.relative_to(page.parent): path.read_bytes()
            for path in page.parent.rglob("*")
            if path.is_file()
        }
        assert len(written) >= 12
        for path, content in written.items():
            assert content == (report / path).read_bytes(), path


def test_what_run_tasks_returned(tmp_path):
    """Translations have corpus scores beside the items, and cells of their own without a number."""
    draw = np.random.default_rng(0)
    both = []
    for number, (model, method, calibration) in enumerate((FLOAT, GPTQ)):
        each = TaskResults(model, method, calibration)
        values = (30 - 8 * number + draw.normal(0, 3, 60)).tolist()
        scores = [Score("chrf++", np.mean(values) + 0.3, 0.5, 60, True)]
        each.add("flores_to_en", "sw", [*scores, Score("bleu_13a", 9.0, 0.4, 60, True)], values)
        each.missing += [
            Missing("flores", "xh", None, "no data file"),
            Missing("flores_to_en", "sw", "spbleu", "tokenizer not available"),
            Missing("dolly", "sw", "win_rate", "20 generations, to be judged"),
        ]
        both.append(each)
    [item, *_] = both[0].results.items
    assert (item.task, item.metric, len(item.values)) == ("flores_to_en", "chrf++", 60)
    page = write_evaluation_report(both, tmp_path / "report.html", resamples=400)
    row = found(page.parent, "changes", task="flores_to_en", language="sw")
    assert (row["test"], row["metric"]) == ("bootstrap", "chrf++")
    assert float(row["p_holm"]) < 0.05
    assert found(page.parent, "changes", task="flores_to_en", language="xh")["missing"] == (
        "no data file"
    )
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "**dolly, win_rate**: 20 generations, to be judged (sw)." in text
    assert "**flores_to_en, spbleu**: tokenizer not available (sw)." in text
    assert (
        "flips" not in page.read_text(encoding="utf-8").partition("<main>")[0].partition("nav")[2]
    )


def test_several_models_and_which_diverges_least(tmp_path):
    other = ("out/r", "rtn", "none")
    far = results(GPTQ)
    moved = Results(
        (replace(row, model="out/r", method="rtn", calibration="none", value=row.value
                 * (3 if row.metric == "kl" else 1)) for row in far),
        (replace(each, model="out/r", method="rtn", calibration="none", values=[
            value * (3 if each.metric == "kl" else 1) for value in each.values
        ]) for each in far.items),
    )  # fmt: skip
    models = [results(FLOAT), far, moved]
    page = write_evaluation_report(models, tmp_path / "report.html", resamples=400)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "the least of the models in 2 of 2" in text
    assert "the least of the models in 0 of 2" in text
    table_ = text[text.index("KL(float ‖ model), nats") :]
    assert "**0.0333" not in table_  # 2.0 over 60 tokens is 0.1, not this
    assert re.search(r"Swahili .*\*\*0\.1 .*\| +0\.3 ", table_)
    compared = compare(joined(models), resamples=50, seed=0)
    assert list(compared.labels) == [FLOAT, GPTQ, other]


def test_what_the_float_model_has_no_score_of_is_not_compared(tmp_path):
    """Win rates of `mlcalib judge`, say, are of the quantized model alone."""
    judged = Results([Row(*GPTQ, "sw", "judged", "win_rate", 0.4, 0.05, 60)])
    sources = [results(FLOAT), results(GPTQ), judged]
    page = write_evaluation_report(sources, tmp_path / "report.html", resamples=50)
    assert not [
        row for row in table(tmp_path / "tables" / "changes.csv") if row["task"] == "judged"
    ]
    assert "judged, win_rate" in page.with_suffix(".md").read_text(encoding="utf-8")


def test_a_single_model_has_scores(tmp_path):
    page = write_evaluation_report(results(FLOAT), tmp_path / "report.html")
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "nothing to compare it with" in text
    assert "xnli, acc" in text
    assert "relative change" not in text.lower()


def test_scores_without_items_are_not_tested(tmp_path):
    write_rows(joined([results(FLOAT), results(GPTQ)]), tmp_path / "rows.jsonl")
    page = write_evaluation_report(tmp_path / "rows.jsonl", resamples=50)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "**Nothing is tested**" in text
    assert "−60.0 (not tested" in text  # noqa: RUF001
    assert "5 task scores, none of which can be tested" in text


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (Results, {}, "no rows of results"),
        (lambda: [results(FLOAT), results(GPTQ)], {"baseline": "awq"}, r"No model is called 'awq'; "
         r"there are float \(m\), gptq en \(out/q\)"),
        (lambda: [results(FLOAT), Results([replace(results(FLOAT)[0], value=0.9)])], {},
         r"m \(float, none\) has acc of xnli in 'en' twice: 0.5 \(n 40\) and 0.9"),
        (lambda: [results(FLOAT), Results(results(GPTQ), [
            ItemScores(*GPTQ, "en", "perplexity", "perplexity", [1.0], [60])])], {},
         "out/q and m were scored on other documents of perplexity in 'en'"),
        (lambda: [results(FLOAT), Results(results(GPTQ), [
            ItemScores(*GPTQ, "en", "xnli", "acc", [1.0] * 39)])], {},
         "xnli in 'en': the float model has 40 items, the quantized one 39"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(tmp_path, sources, options, message):
    with pytest.raises(ValueError, match=message):
        write_evaluation_report(sources(), tmp_path / "report.html", resamples=20, **options)
    assert list(tmp_path.iterdir()) == []


def test_where_the_report_goes(rows, tmp_path):
    with pytest.raises(ValueError, match="no source is a file"):
        write_evaluation_report(results(FLOAT))
    with pytest.raises(ValueError, match="expected a name that ends in"):
        write_evaluation_report(rows, tmp_path / "report")
    with pytest.raises(FileNotFoundError):
        write_evaluation_report(tmp_path / "none.jsonl")


def test_the_command(rows, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["report", *map(str, arguments)])

    out = tmp_path / "out.html"
    done = run(rows, rows, "--out", out, "--float", "out/q", "--resamples", 50, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert f"written to {out}" in done.output
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "Against `gptq en` (`out/q`)" in text
    assert "which is not a float model" in text
    assert "50 resamples, seed 3" in text
    assert found(tmp_path, "changes", task="xnli", language="zh")["change"] == "150.0"  # 8 to 20
    for arguments, message in (
        ([rows, tmp_path], "2 paths were given, of which one is a folder"),
        ([tmp_path, "--float", "m"], "a study knows its float model"),
        ([tmp_path], "is not a study folder"),
        ([rows, "--float", "x"], "No model is called 'x'"),
    ):
        assert message in str(run(*arguments).exception)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(40)), code=st.sampled_from(["en", "sw", "zh"]))
def test_the_order_of_items_changes_nothing(order, code):
    def change(before, after):
        rows = [
            Row(*model, code, "xnli", "acc", sum(values) / 40, None, 40)
            for model, values in ((FLOAT, before), (GPTQ, after))
        ]
        items = {FLOAT: {"xnli": {code: Items(before)}}, GPTQ: {"xnli": {code: Items(after)}}}
        return relative_changes(rows, GPTQ, items=items, resamples=50).cells["xnli"][code]

    pair = answers("xnli", code)
    assert change(*pair) == change(*([side[at] for at in order] for side in pair))


def test_models_made_alike_are_told_apart_by_the_end_of_their_names():
    models = [("float", "float", "none"), ("a/w4", "gptq", "en"), ("b/w3", "gptq", "en")]
    assert [label(model, models) for model in models] == ["float", "gptq en w4", "gptq en w3"]
    same = [("a/out", "gptq", "en"), ("b/out", "gptq", "en")]
    assert [label(model, same) for model in same] == ["gptq en a/out", "gptq en b/out"]
