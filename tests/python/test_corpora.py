import json
from importlib.resources import files

import pytest

from mlcalib.corpora import open_corpus, registry
from mlcalib.languages import language_set


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "en").mkdir()
    return tmp_path


def read(folder, language="en", split="calib"):
    return list(open_corpus(f"files:{folder}").documents(language, split))


def test_lines(folder):
    (folder / "en/calib.txt").write_bytes("\ufeff one \r\n\r\n \ntwo\u2028three".encode())
    assert read(folder) == ["one", "two\u2028three"]


def test_form_feeds(folder):
    (folder / "en/calib.txt").write_text("a = 1\n\n  b = 2\n\f\n\f\nc = 3\n")
    assert read(folder) == ["a = 1\n\n  b = 2", "c = 3"]


def test_jsonl(folder):
    rows = [{"text": " one\ntwo\f"}, {"text": " "}, {"text": "trois é\u2028", "source": 5}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "en/eval.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert read(folder, split="eval") == ["one\ntwo", "trois é"]


def test_other_files_do_not_matter(folder):
    (folder / "en/calib.txt").write_text("one")
    for name in ("README.md", "en/README.md", "en/LICENSES.txt", "en/calib.sources.tsv"):
        (folder / name).write_bytes(b"\xff")
    (folder / "docs").mkdir()
    assert read(folder) == ["one"]
    with pytest.raises(FileNotFoundError, match=r"It has: en\."):
        read(folder, "docs")


def test_name():
    assert open_corpus("sample").name == "sample"


def test_name_of_files(folder):
    assert open_corpus(f"files:{folder}").name == f"files:{folder}"


def test_folder_is_missing_or_a_file(folder):
    with pytest.raises(FileNotFoundError, match=r"corpus folder '.*/gone' does not exist"):
        read(folder / "gone")
    (folder / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"corpus '.*/file' is a file; give the folder"):
        read(folder / "file")
    with pytest.raises(ValueError, match="'files' needs a folder; write 'files:PATH'"):
        open_corpus("files")


def test_language_is_missing(folder):
    with pytest.raises(FileNotFoundError, match="It has: no language at all"):
        read(folder, "sw")
    (folder / "en/calib.txt").write_text("one")
    (folder / "fr").mkdir()
    (folder / "fr/eval.jsonl").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"no text in 'sw' \(no folder '.*/sw'.*has: en, fr\."
    ):
        read(folder, "sw")


def test_split_is_missing(folder):
    (folder / "en/calib.txt").write_text("one")
    with pytest.raises(
        FileNotFoundError, match=r"/en' has no eval text: 'eval.txt' or .* only calib.txt\."
    ):
        read(folder, split="eval")


def test_txt_is_read_and_jsonl_is_not_where_both_are_there(folder):
    (folder / "en/calib.txt").write_text("one")
    (folder / "en/calib.jsonl").write_text('{"text": "two"}')
    assert read(folder) == ["one"]


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\f\n\f"])
def test_no_documents(folder, content):
    (folder / "en/calib.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"calib.txt' holds no documents"):
        read(folder)


def test_invalid_utf8(folder):
    (folder / "en/calib.txt").write_bytes(b"one\ntwo\nt\xe9st\n")
    with pytest.raises(
        ValueError, match=r"calib.txt' is not valid UTF-8: byte 0xe9 on line 3 \(byte 9 of the file"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{text}", r"calib.jsonl', line 3 is not JSON: Expecting property name"),
        ('["text"]', r"line 3 is a JSON list; an object was expected"),
        (
            '{"question": "?", "answer": "!"}',
            r"line 3 has no field 'text'; it has: question, answer",
        ),
        ("{}", r"line 3 has no field 'text'; it has: no field"),
        ('{"text": 5}', r"line 3: 'text' is a int; a string or a list of messages was expected"),
        ('{"text": "\\ud800"}', r"line 3: 'text' is not valid Unicode"),
    ],
)
def test_bad_json_line(folder, line, message):
    (folder / "en/calib.jsonl").write_text('{"text": "one"}\n\n' + line)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_corpora_by_name():
    assert registry.names() == ["c4", "files", "hub", "sample", "translated", "wikipedia"]
    with pytest.raises(ValueError, match=r"Unknown corpus 'file'\. Did you mean 'files'"):
        open_corpus("file:/tmp")
    with pytest.raises(ValueError, match="'sample' takes no argument, but 'en' was given"):
        open_corpus("sample:en")


@pytest.mark.parametrize("code", language_set("multimix").weights)
def test_sample(code):
    sample = open_corpus("sample")
    calib, held_out = (list(sample.documents(code, split)) for split in ("calib", "eval"))
    assert min(len(calib), len(held_out)) > 5
    assert not set(calib) & set(held_out)


def test_sample_says_what_it_is():
    text = files("mlcalib.corpora.sample").joinpath("README.md").read_text(encoding="utf-8")
    for word in ("Machine-written", "Unreviewed", "Parallel", "demonstration only", "Apache-2.0"):
        assert word in text
