"""Rows and what they are made of, on disk and together."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_evaluation import FLOAT, GPTQ, results

from mlcalib.results.rows import (
    ItemScores,
    Results,
    Row,
    items_path,
    joined,
    read_results,
    read_rows,
    write_results,
    write_rows,
)

VALUES = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=5)


def test_rows_and_items_survive_the_disk(tmp_path):
    both = joined([results(FLOAT), results(GPTQ)])
    beside = write_results(both, tmp_path / "deep" / "rows.jsonl")
    assert beside == tmp_path / "deep" / "rows.items" == items_path(beside.parent / "rows.jsonl")
    back = read_results(tmp_path / "deep" / "rows.jsonl")
    assert list(back) == list(both) == read_rows(tmp_path / "deep" / "rows.jsonl")
    assert back.items == both.items
    lines = beside.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(both.items)
    assert json.loads(lines[0])["values"][:2] == [1.0, 1.0]


@settings(deadline=None, max_examples=30)
@given(values=VALUES)
def test_any_items_survive_the_disk(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("items") / "rows.jsonl"
    n = sum(value is not None for value in values)
    of = ("m", "float", "none", "sw", "xnli", "acc")
    found = Results([Row(*of, 0.5, None, n)], [ItemScores(*of, values)])
    write_results(found, path)
    assert read_results(path).items == found.items


def test_any_line_separator_of_unicode_survives_the_disk(tmp_path):
    rows = [Row("a\u2028b", "float", "none", "sw", "xnli", "acc", 0.5, None, 3)]
    write_rows(rows, tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_rows_alone_have_no_items(tmp_path):
    write_rows(results(FLOAT), tmp_path / "rows.jsonl")
    assert read_results(tmp_path / "rows.jsonl").items == []
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "none.jsonl")


def test_items_of_another_run_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_results(results(FLOAT), path)
    fewer = [row if row.task != "xnli" else Row(*FLOAT, row.language, "xnli", "acc", 1, None, 7)
             for row in results(FLOAT)]  # fmt: skip
    write_rows(fewer, path)
    with pytest.raises(ValueError, match=r"rows\.items has 40 items .* says 7; they are of"):
        read_results(path)


def test_a_foreign_line_of_items_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    beside = write_results(results(FLOAT), path)
    beside.write_text('{"model": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.items, line 1, is not items of a result"):
        read_results(path)


@pytest.mark.parametrize(
    "change",
    [
        {"value": "0.5"}, {"value": None}, {"n": 1.5}, {"n": [1]}, {"model": {}}, {"seed": "a"},
        {"model": "\ud800"}, {"\ud800": 1}, {"windows": [["a"]]}, {"value": [[]] * 200},
    ],
)  # fmt: skip
def test_a_row_with_another_type_is_named(change, tmp_path):
    row = {**Row("m", "float", "none", "sw", "xnli", "acc", 0.5, None, 3).record(), **change}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1, is not a row of results") as error:
        read_rows(tmp_path / "rows.jsonl")
    str(error.value).encode()


@pytest.mark.parametrize(
    "change", [{"values": 1}, {"values": ["a"]}, {"sizes": ["a"]}, {"task": []}]
)
def test_items_with_another_type_are_named(change, tmp_path):
    write_results(results(FLOAT), tmp_path / "rows.jsonl")
    beside = tmp_path / "rows.items"
    item = {**json.loads(beside.read_text().splitlines()[0]), **change}
    beside.write_text(json.dumps(item))
    with pytest.raises(ValueError, match=r"rows\.items, line 1, is not items of a result"):
        read_results(tmp_path / "rows.jsonl")
