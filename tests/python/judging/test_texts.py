"""Prompts and generations as files."""

import json

import pytest
from memory import peak

from mlcalib.common.checked import as_type
from mlcalib.judging import Generation, Prompt, pair, read_generations, read_prompts
from mlcalib.judging.answers import AnswerLine
from mlcalib.judging.journal import Journal
from mlcalib.judging.language_codes import find_code
from mlcalib.results.generations import Source, generation_row

# Rows as of CohereLabs/aya_evaluation_suite, dolly_machine_translated: id is an integer that is the
# same in all languages, languages are ISO 639-3, often macrolanguages.
DOLLY = [
    {"id": 12, "inputs": "Name three fruits.", "targets": "t", "language": "eng", "script": "Latn"},
    {"id": 12, "inputs": "Taja matunda 3.", "targets": "t", "language": "swa", "script": "Latn"},
    {"id": 12, "inputs": "列举三种水果。", "targets": "t", "language": "zho", "script": "Hans"},
    {"id": 12, "inputs": "列舉三種水果。", "targets": "t", "language": "zho", "script": "Hant"},
    {"id": 12, "inputs": "اذكر ثلاث فواكه.", "targets": "t", "language": "arb", "script": "Arab"},
    {"id": 30, "inputs": "Is sky\u2028blue?", "targets": "t", "language": "eng", "script": "Latn"},
]  # fmt: skip


def write(path, rows):
    escaped = "\\ud83d" in json.dumps(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows))
    return path


def test_dolly(tmp_path):
    prompts = read_prompts(write(tmp_path / "dolly.jsonl", DOLLY))
    assert [each.language for each in prompts] == ["en", "en", "sw", "zh", "zh-Hant", "ar"]
    assert prompts[1] == Prompt("30", "en", "Is sky\u2028blue?")
    chosen = read_prompts(tmp_path / "dolly.jsonl", "sw,en", limit=1, seed=3)
    assert [each.language for each in chosen] == ["sw", "en"]


def test_dolly_as_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(DOLLY), tmp_path / "test.parquet")
    write(tmp_path / "test.jsonl", DOLLY)
    assert read_prompts(tmp_path / "test.parquet") == read_prompts(tmp_path / "test.jsonl")


def test_own_prompts(tmp_path):
    rows = [{"language": "en", "prompt": f"Prompt {number}"} for number in range(40)]
    path = write(tmp_path / "own.jsonl", rows)
    assert [each.id for each in read_prompts(path)] == [str(number) for number in range(1, 41)]
    drawn = [each.id for each in read_prompts(path, limit=10, seed=1)]
    assert len(set(drawn)) == 10
    assert drawn == [each.id for each in read_prompts(path, "en", limit=10, seed=1)]
    assert drawn != [each.id for each in read_prompts(path, limit=10, seed=2)]


@pytest.mark.parametrize(
    ("given", "script", "code"),
    [
        ("sw", None, "sw"), ("swh_Latn", None, "sw"), ("swh", None, "sw"), ("swa", "Latn", "sw"),
        ("zho", None, "zh"), ("zho", "Hant", "zh-Hant"), ("zho_Hant", None, "zh-Hant"),
        ("ara", "Arab", "ar"), ("nor", "Latn", "nb"), ("kas", "Deva", "ks-Deva"),
        ("fas", "Arab", "fa"),
        ("en", "Latn", "en"), ("zh-Hant", "Hant", "zh-Hant"), ("min", "Arab", "min-Arab"),
    ],
)  # fmt: skip
def test_language_codes(given, script, code):
    assert find_code(given, script) == code


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"language": "en"}], {}, "line 1 has no field 'prompt'; it has: language"),
        ([{"prompt": "x"}], {}, "no field 'language'"),
        ([{"prompt": " ", "language": "en"}], {}, "'prompt' is blank"),
        ([{"prompt": None, "language": "en"}], {}, "'prompt' is None"),
        ([{"prompt": "x", "language": "Swahili"}], {}, "line 1: .*Did you mean 'sw'"),
        ([{"id": 1, "prompt": "x", "language": "en"}] * 2, {}, "id 1 in 'en' twice"),
        ([{"prompt": "x", "language": "en"}], {"languages": "en,sw"}, "no prompt in sw; it"),
        ([{"prompt": "x", "language": "en"}], {"limit": 0}, "limit is 0"),
        (["x"], {}, "line 1, is a JSON str"),
        ([{"prompt": "x\ud83d", "language": "en"}], {}, "not valid Unicode"),
    ],
)  # fmt: skip
def test_errors(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / "p.jsonl", rows), **options)


def test_pairs(tmp_path):
    rows = [
        {"id": name, "language": code, "prompt": "?", "output": f"{code} {name}"}
        for code in ("en", "sw")
        for name in ("1", "2")
    ]
    first = read_generations(write(tmp_path / "a.jsonl", rows))
    rows[1]["output"] = ""  # a model may say nothing
    second = read_generations(write(tmp_path / "b.jsonl", rows[::-1]))
    pairs = pair(first, second)
    assert [(each.language, each.id, each.first, each.second) for each in pairs[:2]] == [
        ("en", "1", "en 1", "en 1"),
        ("en", "2", "en 2", ""),
    ]
    with pytest.raises(ValueError, match=r"id 2 in 'sw' is missing in the second"):
        pair(first, second[1:])
    with pytest.raises(ValueError, match=r"id 1 in 'en' is missing in the first"):
        pair(first[1:], second)
    with pytest.raises(ValueError, match="another prompt in each file"):
        pair(first, [Generation(each.id, each.language, "!", "x") for each in second])
    with pytest.raises(ValueError, match="first file is empty"):
        pair([], [])


def test_a_journal_goes_on_after_a_kill(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    with Journal(path, "f", "answers", dict) as journal:
        journal.append({"id": "1", "text": "a\u2028b"})
        journal.append({"id": "2", "text": "ب"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with Journal(path, "f", "answers", dict) as journal:
        assert journal.rows == [{"id": "1", "text": "a\u2028b"}]
        journal.append({"id": "2", "text": "ب"})
    assert "cut short" in caplog.text
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="made with other texts, models or options"):
        Journal(path, "g", "answers", dict)


@pytest.mark.parametrize(
    "content",
    [
        "notes without a newline", "notes\n", "[1]\n", '{"id": 1}\n', "[" * 500 + "]" * 500 + "\n",
        '{"fingerprint": "f", "id": "\xe9"}\n',
    ],
)  # fmt: skip
def test_a_journal_leaves_other_files_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="is not a line of answers"):
        Journal(path, "f", "answers", dict)
    assert path.read_text(encoding="latin-1") == content


@pytest.mark.parametrize(
    "change", [{"id": 1}, {"output": None}, {"language": []}, {"id": "\ud800"}]
)
def test_a_line_without_what_is_needed_is_named(change, tmp_path):
    path = tmp_path / "answers.jsonl"
    row = {"language": "en", "id": "1", "output": "a", "fingerprint": "f", **change}
    path.write_text(f"{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 1, is not a line of answers"):
        Journal(path, "f", "answers", AnswerLine)


@pytest.mark.parametrize("text", ["a" * 2**16, "no", "слово"])
def test_a_journal_takes_less_than_twice_its_size(text, tmp_path):
    path = tmp_path / "answers.jsonl"
    row = generation_row(Generation("1", "en", "What is it?", text), Source("a model"))
    with path.open("w", encoding="utf-8") as file:
        for number in range(max(100, 2**19 // len(text.encode()) // 10)):
            line = {**row, "id": str(number), "finished": True, "fingerprint": "f" * 64}
            file.write(f"{json.dumps(line, ensure_ascii=False)}\n")
    as_type({"language": "en", "id": "1", "output": "a"}, AnswerLine)  # what pydantic makes once
    taken, said = peak(lambda: Journal(path, "f" * 64, "answers", AnswerLine))
    assert not said
    assert taken < 2 * path.stat().st_size
