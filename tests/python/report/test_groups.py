"""Relative changes by script, family and tier, and what is significant."""

import json

import numpy as np
import pytest

from mlcalib.report.comparison.groups import (
    GROUPINGS,
    as_data,
    by_script,
    by_tier,
    group_table,
    grouped,
    language_table,
)
from mlcalib.report.comparison.items import Items
from mlcalib.report.comparison.relative_changes import relative_changes
from mlcalib.report.tables.perplexity import markdown
from mlcalib.results.rows import Row
from mlcalib.results.significance import mcnemar

FLOAT, GPTQ = ("m", "float", "none"), ("m-q", "gptq", "en")
# task, language → float, quantized
SCORES = {
    ("xnli", "en"): (0.50, 0.50), ("xnli", "fr"): (0.50, 0.45), ("xnli", "zh"): (0.40, 0.30),
    ("xnli", "sw"): (0.40, 0.44),
    ("mgsm", "en"): (0.20, 0.19), ("mgsm", "fr"): (0.20, 0.20), ("mgsm", "zh"): (0.10, 0.05),
    ("belebele", "en"): (0.30, 0.30), ("belebele", "yo"): (0.25, 0.20),
    ("belebele", "sw"): (0.0, 0.1),
}  # fmt: skip


def rows(scores=None, metric="acc"):
    return [
        Row(*model, code, task, metric, pair[at], None, 100)
        for (task, code), pair in (scores or SCORES).items()
        for at, model in enumerate((FLOAT, GPTQ))
    ]


def test_the_table_by_language():
    table = language_table(relative_changes(rows(), GPTQ))
    assert table == [
        ["language", "xnli (acc)", "mgsm (acc)", "belebele (acc)", "average"],
        ["en", "+0.0", "-5.0", "+0.0", "-1.7"],
        ["fr", "-10.0", "+0.0", "not measured", "-5.0 of 2"],
        ["zh", "-25.0", "-50.0", "not measured", "-37.5 of 2"],
        ["sw", "+10.0", "not measured", "float is 0", "+10.0 of 1"],
        ["yo", "no task", "no task", "-20.0", "-20.0 of 1"],
    ]
    assert markdown(table)


def test_groups():
    changes = relative_changes(rows(), GPTQ)
    table = group_table(grouped(changes, by_script))
    assert table == [
        ["languages", "n", "xnli", "mgsm", "belebele", "average", "W-L-T", "worse than English *"],
        ["English", "1", "+0.0", "-5.0", "+0.0", "-1.7", "0-1-2", ""],
        ["all others", "4", "-8.3 of 3", "-25.0 of 2", "-20.0 of 1", "-13.1", "1-4-1", ""],
        ["Latin script", "3", "+0.0 of 2", "+0.0 of 1", "-20.0 of 1", "-5.0", "1-2-1", ""],
        ["other scripts", "1", "-25.0", "-50.0", "not measured", "-37.5", "0-2-0", ""],
    ]
    tiers = {group.name: group.languages for group in grouped(changes, by_tier)}
    assert tiers["tier 5"] == ["fr", "zh"]
    assert [by_script(code) for code in ("sw", "ar", "code")] == [
        "Latin script", "other scripts", "no script",
    ]  # fmt: skip
    assert [sorted(GROUPINGS), len(grouped(changes, GROUPINGS["family"]))] == [
        ["family", "resource tier", "script"],
        5,
    ]
    data = json.loads(json.dumps(as_data(changes)))
    assert data["groups"]["script"][2]["tasks"]["xnli"] == {"value": pytest.approx(0), "n": 2}
    assert data["averages"]["yo"]["tasks"] == 1
    assert data["tests"].startswith("Not tested")


def test_reasons_that_are_known_better():
    reasons = {("belebele", "fr"): "tokenizer not available", ("xnli", "en"): "never shown"}
    cells = relative_changes(rows(), GPTQ, missing=reasons).cells
    assert cells["belebele"]["fr"].missing == "tokenizer not available"
    assert cells["belebele"]["zh"].missing == "not measured"
    assert cells["xnli"]["en"].missing == ""


def test_where_lower_is_better_the_sign_is_reversed():
    changes = relative_changes(rows({("perplexity", "en"): (10.0, 11.0)}, "perplexity"), GPTQ)
    assert changes.cells["perplexity"]["en"].value == pytest.approx(-10)


def accuracies(rights, n=400):
    """Return items and rows: language → (share right, share lost, share gained)."""
    draw = np.random.default_rng(0)
    items = {FLOAT: {"xnli": {}}, GPTQ: {"xnli": {}}}
    scores = {}
    for code, (right, lost, gained) in rights.items():
        before = draw.permutation(np.arange(n) < right * n).astype(float)
        after = before.copy()
        after[np.flatnonzero(before)[: round(lost * n)]] = 0
        after[np.flatnonzero(before == 0)[: round(gained * n)]] = 1
        items[FLOAT]["xnli"][code], items[GPTQ]["xnli"][code] = Items(before), Items(after)
        scores["xnli", code] = (before.mean(), after.mean())
    return rows(scores), items


def test_what_is_worse_than_english_is_marked():
    found, items = accuracies(
        {
            "en": (0.6, 0.02, 0.01),
            "fr": (0.5, 0.02, 0.02),
            "zh": (0.5, 0.2, 0.02),
            "sw": (0.4, 0, 0.1),
        }
    )
    changes = relative_changes(found, GPTQ, items=items, resamples=2000)
    cells = changes.cells["xnli"]
    assert [code for code, cell in cells.items() if cell.worse_than_english] == ["zh"]
    assert cells["zh"].value == pytest.approx(-36)
    assert cells["zh"].against_english == pytest.approx(-36 + 100 * 0.01 / 0.6, abs=0.01)
    assert cells["en"].p_english is None
    # Holm: the smallest p of the four languages counts four times.
    raw = mcnemar(items[FLOAT]["xnli"]["zh"].values, items[GPTQ]["xnli"]["zh"].values)
    assert cells["zh"].p_float == pytest.approx(4 * raw)
    assert cells["fr"].p_float == 1
    assert cells["sw"].p_english < 0.05  # better, and so not marked
    table = language_table(changes)
    assert table[3] == ["zh", "-36.0*", "-36.0*", "400", "0.004", "-34.3", "0.003"]  # of 2,000
    assert table[1][3:] == ["400", table[1][4], "", ""]
    assert group_table(grouped(changes, by_script))[-1][-1] == "zh"
    assert "McNemar" in changes.tests
    assert "seed 0" in changes.tests


def test_perplexity_is_tested_over_documents():
    draw = np.random.default_rng(1)
    tokens = draw.integers(50, 100, 60).astype(float)
    items = {FLOAT: {"perplexity": {}}, GPTQ: {"perplexity": {}}}
    scores = {}
    for code, rise in {"en": 0.05, "fr": 0.06, "zh": 0.4}.items():
        loss = draw.normal(2.5, 0.4, 60) * tokens
        more = loss + draw.normal(rise, 0.1, 60) * tokens
        items[FLOAT]["perplexity"][code] = Items(loss, tokens)
        items[GPTQ]["perplexity"][code] = Items(more, tokens)
        ratio = [each.sum() / tokens.sum() for each in (loss, more)]
        scores["perplexity", code] = (np.exp(ratio[0]), np.exp(ratio[1]))
    changes = relative_changes(rows(scores, "perplexity"), GPTQ, items=items, resamples=2000)
    cells = changes.cells["perplexity"]
    assert cells["zh"].worse_than_english
    assert not cells["fr"].worse_than_english
    assert cells["zh"].against_english == pytest.approx(cells["zh"].value - cells["en"].value)
    assert all(cell.p_float < 0.05 for cell in cells.values())
    assert cells["zh"].n == 60


def test_a_null_is_seldom_significant():
    """Simulated: languages that lose as English does are marked in at most 5 % of studies."""
    draw = np.random.default_rng(2)
    marked, runs = 0, 200
    for run in range(runs):
        items = {FLOAT: {"xnli": {}}, GPTQ: {"xnli": {}}}
        scores = {}
        for code in ("en", "fr", "zh", "sw"):
            before = (draw.random(150) < 0.5).astype(float)
            after = np.where(draw.random(150) < 0.15, draw.random(150) < 0.3, before)
            items[FLOAT]["xnli"][code], items[GPTQ]["xnli"][code] = Items(before), Items(after)
            scores["xnli", code] = (before.mean(), after.mean())
        changes = relative_changes(rows(scores), GPTQ, items=items, resamples=400, seed=run)
        marked += any(cell.worse_than_english for cell in changes.cells["xnli"].values())
    assert marked / runs <= 0.05 + 0.03  # two standard errors of 200 runs


def test_too_few_right_answers_have_no_relative_change_to_test():
    found, items = accuracies({"en": (0.6, 0.02, 0), "fr": (0.0025, 0.0025, 0)})
    changes = relative_changes(found, GPTQ, items=items, resamples=500)
    cell = changes.cells["xnli"]["fr"]
    assert (cell.value, cell.low, cell.p_english) == (-100, None, None)
    assert (cell.test, cell.n, cell.p_float) == ("McNemar", 400, 1)  # which needs no score
    assert (changes.averages["fr"].n, changes.averages["fr"].test) == (0, "")


def test_items_that_say_nothing_are_left_out():
    draw = np.random.default_rng(3)
    before, after = ((draw.random(200) < share).astype(float) for share in (0.8, 0.5))
    full = {FLOAT: {"xnli": {"zh": Items(before)}}, GPTQ: {"xnli": {"zh": Items(after)}}}
    more = {
        model: {"xnli": {"zh": Items([*each["xnli"]["zh"].values, *rest])}}
        for (model, each), rest in zip(
            full.items(), ([None, 1, None], [0, None, None]), strict=True
        )
    }
    found = rows({("xnli", "zh"): (before.mean(), after.mean())})
    cells = [
        relative_changes(found, GPTQ, items=items, resamples=500).cells["xnli"]["zh"]
        for items in (full, more)
    ]
    assert cells[0].p_float == cells[1].p_float == mcnemar(before, after)
    assert [cell.n for cell in cells] == [200, 203]


def test_errors():
    with pytest.raises(ValueError, match="There is no row of"):
        relative_changes(rows(), ("x", "awq", "en"))
    with pytest.raises(ValueError, match="There are 0 float models"):
        relative_changes(rows()[1::2], GPTQ)
    both = rows() + rows(metric="acc_norm")
    with pytest.raises(ValueError, match="'xnli' has the metrics acc, acc_norm"):
        relative_changes(both, GPTQ)
    assert list(relative_changes(both, GPTQ, metrics={"mgsm": "acc"}).cells) == ["mgsm"]
    with pytest.raises(ValueError, match="no 'f1' of the task 'xnli'"):
        relative_changes(both, GPTQ, metrics={"xnli": "f1"})
    items = {FLOAT: {"xnli": {"en": Items([1, 0])}}, GPTQ: {"xnli": {"en": Items([1])}}}
    with pytest.raises(ValueError, match="xnli in 'en': the float model has 2 items"):
        relative_changes(rows(), GPTQ, items=items)
