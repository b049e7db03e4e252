"""Text and JSON in files that someone made to do harm, or that went wrong."""

import gzip
import json

import pytest
import zstandard
from memory import peak

from mlcalib.common.json_text import MAX_DEPTH, loads
from mlcalib.common.row_files import file_rows
from mlcalib.common.text_files import byte_pieces, lines, text_pieces

MIB = 2**20


def zst(size):
    """Return a file that expands to so many bytes of rows, and is a small part of that itself."""
    packer = zstandard.ZstdCompressor().compressobj()
    rows = b'{"text": "%s"}\n' % (b"a" * 2000) * (MIB // 2013)
    parts = [packer.compress(rows) for _ in range(size // len(rows) + 1)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("kind", [".zst", ".gz"])
def test_a_file_that_expands_to_far_more_than_text_does_is_refused(kind, tmp_path):
    path = tmp_path / f"calib.jsonl{kind}"
    content = zst(64 * MIB) if kind == ".zst" else gzip.compress(bytes(16 * MIB))
    path.write_bytes(content)
    assert len(content) < 64 * MIB / 100
    taken, error = peak(lambda: sum(map(len, byte_pieces(path))))
    assert str(path) in error
    assert "expands to more than" in error
    assert "decompress it first" in error
    assert taken < 8 * MIB
    taken, error = peak(lambda: sum(1 for _ in file_rows(path)))
    assert str(path) in error
    assert taken < 16 * MIB


def test_rows_that_repeat_are_read(tmp_path):
    path = tmp_path / "calib.jsonl.gz"
    row = json.dumps({"text": "The same text over and over."})
    path.write_bytes(gzip.compress(f"{row}\n".encode() * 9999))
    assert sum(1 for _ in file_rows(path)) == 9999


def test_rows_are_read_one_after_another(tmp_path):
    path = tmp_path / "calib.jsonl"
    path.write_bytes((json.dumps({"text": "word " * 200}) + "\n").encode() * 16_000)
    assert path.stat().st_size > 15 * MIB
    taken, error = peak(lambda: sum(1 for _ in file_rows(path)))
    assert not error
    assert taken < 6 * MIB


def test_rows_of_an_array_are_read_one_after_another(tmp_path):
    path = tmp_path / "calib.json"
    path.write_text(json.dumps([{"text": "word " * 200}] * 16_000))
    assert path.stat().st_size > 15 * MIB
    taken, error = peak(lambda: sum(1 for _ in file_rows(path)))
    assert not error
    assert taken < 8 * MIB


@pytest.mark.parametrize("end", ["", "]"])
def test_an_array_of_one_long_row_takes_twice_its_size(end, tmp_path):
    path = tmp_path / "calib.json"
    path.write_text(f"{json.dumps([{'text': 'word ' * 2 * MIB}])[:-1]}{end}")
    taken, error = peak(lambda: sum(1 for _ in file_rows(path)))
    assert bool(error) == (not end)
    assert taken < 2 * path.stat().st_size + 4 * MIB


def test_a_row_as_long_as_a_file_takes_twice_its_size(tmp_path):
    path = tmp_path / "calib.jsonl"
    path.write_text(json.dumps({"text": "word " * 2 * MIB}))
    taken, _ = peak(lambda: sum(1 for _ in file_rows(path)))
    assert taken < 2 * path.stat().st_size + 4 * MIB


@pytest.mark.parametrize("packed", ["", ".zst"])
@pytest.mark.parametrize("size", [1, 3, 2**20 - 1, 2**20])
def test_line_ends_at_the_end_of_a_piece(size, packed, tmp_path):
    path = tmp_path / f"a.txt{packed}"
    parts = ["a" * size, "b\fc", "", "d\u2028e", "f"]
    for end in ("\n", "\r\n", "\r"):
        content = end.join(parts).encode()
        path.write_bytes(zstandard.compress(content) if packed else content)
        assert list(lines(path)) == parts
        assert "".join(text_pieces(path)) == end.join(parts)


def test_the_last_carriage_return_ends_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\rb\r")
    assert list(lines(tmp_path / "a.txt")) == ["a", "", "b", ""]


@pytest.mark.parametrize("at", [5, 2**20 - 1, 2**20 + 5])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_wrong_byte_is_found_beyond_the_first_piece(at, end, tmp_path):
    path = tmp_path / "a.txt"
    rows = (b"abc" + end) * (at // (3 + len(end)))
    path.write_bytes(rows + "é".encode() + b"\xe9 and more")
    line, byte = rows.count(b"\n") + 1, len(rows) + 2
    with pytest.raises(ValueError, match=rf"byte 0xe9 on line {line} \(byte {byte} of the file\)"):
        list(lines(path))


@pytest.mark.parametrize("cut", [1, 5, 20, -1])
def test_a_cut_off_zst_is_named(cut, tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"whole text " * 99)[:cut])
    with pytest.raises(ValueError, match=r"a\.txt\.zst is not a readable \.zst file"):
        list(lines(path))


def nested(depth):
    return "[" * depth + "]" * depth


def test_json_is_as_deep_as_others_read():
    assert loads(nested(MAX_DEPTH))
    assert loads(json.dumps([[{}]] * 1000)) == [[{}]] * 1000
    for text in (
        nested(MAX_DEPTH + 1),
        nested(900),
        nested(10**5),
        '{"a":' * 200 + "1" + "}" * 200,
    ):
        for each in (text, text.encode()):
            with pytest.raises(ValueError, match="nested more than 100 levels deep"):
                loads(each)


@pytest.mark.parametrize("text", [nested(101), nested(985), nested(10**5), "[" * 500, "9" * 5000])
def test_rows_that_are_too_deep_are_named(text, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{{"a": {text}}}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2, is not JSON"):
        list(file_rows(path))
    refused = []
    assert len(list(file_rows(path, refused=lambda *said: refused.append(said)))) == 1
    assert len(refused) == 1
