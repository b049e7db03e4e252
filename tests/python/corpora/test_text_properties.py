"""Files with random line ends, encodings and fields: what goes in is used or counted."""

import gzip
import json
import string

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizer import make_tokenizer

from mlcalib.calibration_sets import build
from mlcalib.corpora import Tally, open_corpus
from mlcalib.languages import language_set

KNOWN = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
ENCODINGS = [*KNOWN, "utf-16-le", "latin-1", "cp1251", "shift-jis"]
PACKED = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

words = st.text(st.sampled_from(string.ascii_letters + "é市\u0300 \t\ufeff\u2028\x0b\x1c\ud83d"))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
parts = st.lists(
    words
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking", "image_url", "x"])},
        optional={"text": scalars, "thinking": words, "image_url": words},
    ),
    max_size=3,
)
calls = st.lists(
    scalars
    | st.fixed_dictionaries(
        {"function": scalars | st.fixed_dictionaries({"name": words, "arguments": words})}
    ),
    max_size=2,
)
roles = st.sampled_from(
    ["user", "human", "assistant", "gpt", "developer", "tool", "bing", "SYSTEM"]
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": roles | scalars,
            "from": roles,
            "content": words | parts | scalars,
            "value": words,
            "tool_calls": calls | scalars,
            "reasoning_content": words,
        },
    ),
    max_size=3,
)
rows = st.dictionaries(
    st.sampled_from(["text", "messages", "conversations", "tools", "id"]),
    scalars | messages | st.lists(scalars, max_size=2),
    max_size=4,
)


def written(folder, name, content):
    (folder / "en").mkdir(exist_ok=True)
    for old in (folder / "en").iterdir():
        old.unlink()
    (folder / "en" / name).write_bytes(content)


def read(folder):
    """Return the documents, or None where an error names the file; check the sum."""
    tally = Tally()
    error = None
    try:
        found = list(open_corpus(f"files:{folder}").documents("en", "calib", 0).read(tally))
    except ValueError as raised:
        error = str(raised)
    if error is not None:
        assert f"{folder}/en/" in error
        return None, tally
    assert tally.read == len(found) + sum(tally.dropped.values())
    assert set(tally.dropped) <= set(tally.examples)
    return found, tally


@quick
@given(
    st.lists(words.map(lambda text: text.replace("\ufeff", "")), max_size=9),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(ENCODINGS),
    st.sampled_from(list(PACKED)),
)
def test_lines(tmp_path, lines, end, encoding, packed):
    content = end.join(lines).encode(encoding, errors="replace")
    written(tmp_path, f"Calib.TXT{packed}", PACKED[packed](content))
    found, tally = read(tmp_path)
    if encoding in KNOWN:
        given_lines = content.decode(encoding).split(end)
        stripped = [line.strip() for line in given_lines]
        assert sorted(found or []) == sorted(filter(None, stripped))
        assert tally.read in (len(lines), len(lines) - 1, 0)


@quick
@given(
    st.lists(rows | scalars, min_size=1, max_size=9),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(list(PACKED)),
    st.none() | st.integers(0, 30),
)
def test_json_rows(tmp_path, given_rows, end, packed, cut):
    lines = [json.dumps(row) for row in given_rows]
    lines[-1] = lines[-1][:cut]
    written(tmp_path, f"calib.jsonl{packed}", PACKED[packed](end.join(lines).encode()))
    found, tally = read(tmp_path)
    assert tally.read == sum(bool(line.strip()) for line in lines)
    tokenizer = make_tokenizer("<s> $A")
    for kind, template in ((str, False), (list, "{% for m in messages %}{{ m }}{% endfor %}")):
        mine = [document for document in found or [] if isinstance(document, kind)]
        if not mine:
            continue
        texts, options = {"en": mine}, {"seq_len": 8, "chat_template": template}
        made = build(
            tokenizer, texts, language_set("en"), tokens=10**4, allow_short=True, **options
        )
        report = made.report["en"]
        assert report.read == len(mine)
        assert report.documents + sum(report.dropped.values()) == report.read


@quick
@given(
    st.binary(max_size=200),
    st.sampled_from(["txt", "jsonl", "parquet"]),
    st.sampled_from(list(PACKED)),
)
def test_any_bytes(tmp_path, content, kind, packed):
    written(tmp_path, f"calib.{kind}{packed}", content)
    read(tmp_path)


def test_a_line_that_is_no_json_does_not_stop_the_rest(tmp_path):
    written(tmp_path, "calib.jsonl", b'{"text": "one"}\n{"text": "tw\n[[[\n{"text": "three"}')
    found, tally = read(tmp_path)
    assert sorted(found) == ["one", "three"]
    assert tally.dropped == {"lines that are not JSON": 2}
    written(tmp_path, "calib.jsonl", ("[" * 10**5).encode())
    with pytest.raises(ValueError, match=r"calib\.jsonl' holds no documents"):
        list(open_corpus(f"files:{tmp_path}").documents("en", "calib"))


def test_what_is_too_deep_or_cannot_be_shown_is_counted(tmp_path):
    deep = '{"messages": [{"role": "user", "content": "a", "x": ' + "[" * 900 + "]" * 900 + "}]}"
    lines = [deep, '{"\\ud800": 1}', '{"messages": [{"\\ud800": "a"}]}', '{"text": "kept"}']
    written(tmp_path, "calib.jsonl", "\n".join(lines).encode())
    found, tally = read(tmp_path)
    assert found == ["kept"]
    assert tally.dropped.total() == 3
    for example in tally.examples.values():
        example.encode()
