import gzip
import json
import re
from importlib.resources import files

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mlcalib.corpora import Tally, left_out, open_corpus, registry, shuffled, window_shuffled
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


def test_parquet(folder):
    table = pa.table({"id": [1, 2, 3, 4], "text": [" one\ntwo", None, " ", "trois é"]})
    pq.write_table(table, folder / "en/calib.parquet", row_group_size=2)
    assert read(folder) == ["one\ntwo", "trois é"]
    chats = [[{"role": "user", "content": "one"}]]
    pq.write_table(pa.table({"messages": chats}), folder / "en/eval.parquet")
    assert read(folder, split="eval") == chats


def test_what_is_left_out_is_counted(folder):
    (folder / "en/calib.txt").write_text("one\n\n \ntwo\n\n")
    pq.write_table(pa.table({"text": ["one", None, " "]}), folder / "en/eval.parquet")
    corpus = open_corpus(f"files:{folder}")
    for split, counts in (
        ("calib", Tally(5, {"blank documents": 3})),
        ("eval", Tally(3, {"blank documents": 1, "documents without text": 1})),
    ):
        tally = Tally()
        list(corpus.documents("en", split).read(tally))
        assert tally == counts
    (folder / "en/calib.txt").write_text("\n \n")
    with pytest.raises(
        ValueError, match=r"no documents \(left out of 2 read: 2 blank documents \(fir"
    ):
        read(folder)


def test_another_field(folder):
    (folder / "en/calib.jsonl").write_text('{"text": "one", "body": "two"}')
    pq.write_table(pa.table({"body": ["three"]}), folder / "en/eval.parquet")
    corpus = open_corpus(f"files:{folder}?field=body")
    assert list(corpus.documents("en", "calib")) == ["two"]
    assert list(corpus.documents("en", "eval")) == ["three"]
    assert corpus.name == f"files:{folder}?field=body"


def test_a_seed_shuffles(folder):
    lines = [str(number) for number in range(50)]
    (folder / "en/calib.txt").write_text("\n".join(lines))
    documents = open_corpus(f"files:{folder}").documents("en", "calib", 3)
    assert list(documents) == shuffled(lines, 3, "en") != lines
    assert list(documents) == list(documents)  # read anew each time
    assert documents.origin == {"file": str(folder / "en/calib.txt")}


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 3000])
def test_a_window_loses_nothing_and_looks_no_further(count):
    from random import Random

    read = []

    def source():
        for number in range(count):
            read.append(number)
            yield number

    order = []
    for given in window_shuffled(source(), Random("x").random):
        assert len(read) <= len(order) + 1001
        order.append(given)
    assert sorted(order) == list(range(count))
    assert count < 2 or order != sorted(order)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda file: file.write_bytes(b"PAR1 not really"),
            r"calib.parquet is not a readable Parquet file",
        ),
        (
            lambda file: pq.write_table(pa.table({"body": ["x"]}), file),
            r"calib.parquet has no field 'text'; it has: body \(nor messages .*\?field=NAME",
        ),
        (
            lambda file: pq.write_table(pa.table({"text": ["x"], "n": [1]}), file),
            r"has no field 'title'; it has: text, n\.",
        ),
        (
            lambda file: pq.write_table(pa.table({"text": ["x"], "title": [5]}), file),
            r"1 documents whose title is neither text nor messages \(first: .*, row 1: a int\)",
        ),
    ],
)
def test_bad_parquet(folder, write, message):
    write(folder / "en/calib.parquet")
    options = "?field=title" if "title" in message else ""
    with pytest.raises(ValueError, match=message):
        list(open_corpus(f"files:{folder}{options}").documents("en", "calib"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?fields=a", "Unknown option of the corpus 'files' 'fields'. Did you mean 'field'"),
        ("?field", "has the option 'field'; write 'OPTION=VALUE'"),
        ("?field=a&field=b", "'field=b'; write .* each once"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(f"files:{folder}{options}")
    with pytest.raises(ValueError, match="'sample' takes no options, but 'field' was given"):
        open_corpus("sample?field=a")


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
        ValueError, match=r"calib.txt is not valid UTF-8: byte 0xe9 on line 3 \(byte 9 of the file"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{text}", r"lines that are not JSON \(first: .*calib.jsonl, line 3: Expecting property"),
        ('["text"]', r"lines that are no JSON object \(first: .*, line 3: a list"),
        (
            '{"question": "?", "answer": "!"}',
            r"without text, messages or conversations \(first: .*, line 3, has: question, answer",
        ),
        ("{}", r"line 3, has: no field"),
        ('{"text": 5}', r"whose text is neither text nor messages \(first: .*, line 3: a int"),
        ('{"text": "\\ud800"}', r"documents that are not valid Unicode \(first: .*, line 3\)"),
    ],
)
def test_a_bad_json_line_is_counted(folder, line, message):
    (folder / "en/calib.jsonl").write_text('{"text": "one"}\n\n' + line)
    tally = Tally()
    assert list(open_corpus(f"files:{folder}").documents("en", "calib").read(tally)) == ["one"]
    assert re.search(message, left_out(tally.read, tally.dropped, tally.examples))
    assert (tally.read, sum(tally.dropped.values())) == (2, 1)
    (folder / "en/calib.jsonl").write_text("\n\n" + line)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["calib.txt", "CALIB.TXT", "calib.JsonL", "Calib.Parquet"])
def test_names_in_any_case_and_compressed(folder, name, ending):
    file = folder / "en" / name
    if name.endswith("Parquet"):
        pq.write_table(pa.table({"text": ["one", "two"]}), file)
    else:
        rows = ["one", "two"] if "txt" in name.lower() else ['{"text": "one"}', '{"text": "two"}']
        file.write_text("\n".join(rows))
    content = file.read_bytes()
    file.unlink()
    half = len(content) // 2
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    packed = folder / "en" / f"{name}{ending.upper()}"
    packed.write_bytes(pack(content[:half]) + pack(content[half:]))  # two members or frames
    assert read(folder) == ["one", "two"]
    if ending:
        packed.write_bytes(pack(content)[:-3])
        with pytest.raises(ValueError, match=rf"{packed.name} is not a readable {ending} file"):
            read(folder)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_line_ends_and_marks(folder, end, encoding):
    lines = ["one", "l'été", "\ufeffthree"]
    (folder / "en/calib.txt").write_bytes(end.join(lines).encode(encoding))
    rows = [json.dumps({"text": line.strip("\ufeff")}, ensure_ascii=False) for line in lines]
    (folder / "en/eval.jsonl").write_bytes(
        end.join([*rows[:2], "\ufeff" + rows[2]]).encode(encoding)
    )
    assert read(folder) == read(folder, split="eval") == ["one", "l'été", "three"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_text_without_its_mark_is_refused(folder, encoding):
    (folder / "en/calib.txt").write_bytes("one\ntwo\n".encode(encoding))
    with pytest.raises(ValueError, match=r"calib.txt looks like UTF-16 or UTF-32 without a byte"):
        read(folder)


def test_files_that_are_not_read_are_named(folder):
    (folder / "en/calib.txt").write_text("one")
    for name in ("calib.jsonl", "calib.txt.gz", "eval.txt", "train.jsonl", "README.md", ".hidden"):
        (folder / "en" / name).write_text("x")
    (folder / "en/parts").mkdir()
    tally = Tally()
    list(open_corpus(f"files:{folder}").documents("en", "calib").read(tally))
    assert tally.noted == {"files of the folder that are not read": 4}
    [names] = tally.examples.values()
    assert names == "calib.txt.gz, calib.jsonl, parts, train.jsonl"
    (folder / "sw").mkdir()
    (folder / "sw/train.jsonl").write_text("x")
    (folder / "fr.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"It has: en\. These files are not read: train\.j"):
        read(folder, "sw")
    with pytest.raises(FileNotFoundError, match=r"files are not read: fr\.txt, sw\."):
        read(folder, "fr")


def test_a_document_that_holds_nearly_all_is_noted(folder):
    lines = [f"the market number {number} opens before sunrise" for number in range(100)]
    tally = Tally()
    (folder / "en/calib.txt").write_text("\n".join(lines))
    list(open_corpus(f"files:{folder}").documents("en", "calib").read(tally))
    assert not tally.noted
    (folder / "en/calib.txt").write_text("\n".join(lines) + "\n\f")
    assert len(list(open_corpus(f"files:{folder}").documents("en", "calib").read(tally))) == 1
    assert tally.noted == {"documents that hold over 90% of the text": 1}
    assert "100 lines, for form feeds separate" in "".join(tally.examples.values())


def test_a_question_mark_in_a_path(tmp_path):
    for name in ("q", "q?x", "q? y&z=1"):
        (tmp_path / name / "en").mkdir(parents=True)
        (tmp_path / name / "en/calib.jsonl").write_text(json.dumps({"text": name, "body": "b"}))
        assert read(tmp_path / name) == [name]
        assert read(f"{tmp_path / name}?field=body") == ["b"]
    with pytest.raises(ValueError, match="has the option 'y'; write 'OPTION=VALUE'"):
        open_corpus(f"files:{tmp_path}/q?y")


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
