"""Rows and names as users write them: used, or counted and named."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlcalib
from mlcalib.corpora import Tally, open_corpus

TEXT = "words that stand in a row and are long enough to be text "


def corpus(folder, content, name="calib.jsonl"):
    (folder / "en").mkdir(exist_ok=True)
    (folder / "en" / name).write_text(content, encoding="utf-8")
    return open_corpus(f"files:{folder}").documents("en", "calib")


def read(documents):
    tally = Tally()
    return list(documents.read(tally)), tally


ROWS = st.one_of(
    st.builds(lambda number: {"text": f"{TEXT}{number}"}, st.integers()),
    st.builds(lambda value: {"text": value}, st.none() | st.integers() | st.just(" ")),
    st.builds(lambda value: {"other": value}, st.text(max_size=3)),
    st.none() | st.integers() | st.lists(st.integers(), max_size=2),
)


@given(st.lists(ROWS, max_size=8), st.sampled_from(["calib.jsonl", "calib.json"]))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_row_is_used_or_counted(tmp_path, rows, name):
    shutil.rmtree(tmp_path / "en", ignore_errors=True)
    rows = [{"text": TEXT}, *rows]
    content = json.dumps(rows) if name == "calib.json" else "\n".join(map(json.dumps, rows))
    documents, tally = read(corpus(tmp_path, content, name))
    assert len(documents) + sum(tally.dropped.values()) == tally.read == len(rows)
    assert documents == [
        row["text"].strip()
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip()
    ]


def test_an_array_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"call a file that holds an array \.json"):
        read(corpus(tmp_path, json.dumps([{"text": TEXT}])))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_rows_is_read(indent, tmp_path):
    rows = [{"text": " one"}, 2, {"text": None}, [{"text": "x"}], {"text": "two"}]
    documents, tally = read(corpus(tmp_path, json.dumps(rows, indent=indent), "Calib.JSON"))
    assert documents == ["one", "two"]
    assert tally.read == 5
    assert tally.dropped == {"rows that are no JSON object": 2, "documents without text": 1}
    path = tmp_path / "en" / "Calib.JSON"
    assert tally.examples == {
        "rows that are no JSON object": f"{path}, row 2: a int",
        "documents without text": f"{path}, row 3",
    }


def test_json_lines_may_be_called_json(tmp_path):
    documents, _ = read(corpus(tmp_path, '{"text": "one"}\n{"text": "two"}\n', "calib.json"))
    assert documents == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "one"}, {"text"', "Expecting ':'.* after 1 rows; mend it there"),
        ('[{"text": "one"} {"text": "two"}]', "Expecting ',', after 1 rows"),
        ('[{"text": "one"},]', "Expecting value, after 1 rows"),
        ('[{"text": "one"}', "Expecting ',' or ']', after 0 rows"),
        ('[{"text": "one"}] [1]', "Extra data, after 1 rows"),
        ('[{"text": "one"}, ' + "[" * 500 + "]" * 501, "nested more than 100 levels.* after 1"),
        ("[]", "holds no documents; put one"),
    ],
)
def test_an_array_that_goes_wrong_is_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"calib\.json'? .*{message}"):
        read(corpus(tmp_path, content, "calib.json"))


def test_messages_in_json_are_a_conversation(tmp_path):
    row = {"messages": json.dumps([{"role": "user", "content": TEXT}])}
    (document,), tally = read(corpus(tmp_path, json.dumps(row)))
    assert document == [{"role": "user", "content": TEXT}]
    assert not tally.dropped


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of the type 'image_url'"),
        ([{"role": "tool", "content": {"a": 1}}], "of the tool: a dict"),
        ([{}], "a message with no field"),
        ([{"role": 1, "content": "x"}], "line 1: 1"),
    ],
)
def test_why_a_conversation_is_left_out(messages, said, tmp_path):
    documents = corpus(tmp_path, json.dumps({"messages": messages}))
    with pytest.raises(ValueError, match="mend its rows") as error:
        read(documents)
    assert said in str(error.value)


def test_null_characters_are_noted(tmp_path):
    documents, tally = read(corpus(tmp_path, f"{TEXT}\0\n{TEXT}", "calib.txt"))
    assert len(documents) == 2
    assert tally.noted["documents that hold null characters"] == 1


def test_names_that_are_nearly_right(tmp_path, tokenizer):
    corpus(tmp_path, TEXT, "calib.txt")
    with pytest.raises(ValueError, match=f"write 'files:{tmp_path}'"):
        open_corpus(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"It has: en\.$"):
        open_corpus(f"files:{tmp_path}").documents("fr", "calib")
    for given_code, meant in (("pt-BR", "'pt'"), ("en_US", "'en'")):
        with pytest.raises(ValueError, match=f"Did you mean {meant}"):
            mlcalib.calibration(tokenizer, given_code, tokens=10)
    with pytest.raises(ValueError, match="empty entry"):
        mlcalib.calibration(tokenizer, "", tokens=10)


def test_a_template_that_is_no_text_is_named(tmp_path, tokenizer):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe\x82")
    with pytest.raises(ValueError, match=r"t\.jinja is no text in UTF-8"):
        mlcalib.calibration(tokenizer, "en", tokens=10, chat_template=Path(tmp_path / "t.jinja"))
