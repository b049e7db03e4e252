"""Rows and documents in files: text, JSON lines, compressed ones, prompts, data of tasks."""

import gzip
import json
import random
from pathlib import Path

import harness
import mutators
import zstandard

with harness.instrumented():
    from mlcalib.corpora import Tally, open_corpus
    from mlcalib.evaluation.tasks.data import read_rows
    from mlcalib.judging.texts import read_generations, read_prompts, read_source

_PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
KINDS = [
    ("calib.jsonl", "", True), ("calib.jsonl", ".gz", True), ("calib.jsonl", ".zst", True),
    ("calib.jsonl", ".gz", False), ("calib.jsonl", ".zst", False),
    ("calib.txt", "", True), ("calib.txt", ".zst", True), ("calib.txt", ".gz", False),
    ("prompts.jsonl", "", True), ("calib.json", "", True), ("calib.json", ".gz", True),
]  # fmt: skip
"""By the first byte of an input: name, how it is compressed, and whether that is done here."""


def read(folder: Path, data: bytes) -> None:
    """Read a file as documents of a corpus, or as prompts, generations and rows of tasks."""
    name, packed, here = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    content = _PACK[packed](data[1:]) if here else data[1:]
    (folder / "en").mkdir(exist_ok=True)
    file = folder / "en" / f"{name}{packed}"
    file.write_bytes(content)
    try:
        if name == "prompts.jsonl":
            _prompts(file)
        else:
            _documents(folder)
    finally:
        file.unlink()


def _documents(folder: Path) -> None:
    tally = Tally()
    found = list(open_corpus(f"files:{folder}").documents("en", "calib", 0).read(tally))
    harness.promise(tally.read == len(found) + sum(tally.dropped.values()), "a row is not counted")
    json.dumps([tally.examples, tally.noted], ensure_ascii=False).encode()
    for document in found:
        json.dumps([document, getattr(document, "tools", None)], ensure_ascii=False).encode()


def _prompts(file: Path) -> None:
    errors = []
    for reader in (
        read_prompts,
        read_generations,
        read_source,
        lambda path: read_rows(path, ["a"]),
    ):
        try:
            reader(file)
        except ValueError as error:
            errors.append(error)
            harness.promise(str(file) in str(error), f"not named: {error}")
            str(error).encode()
    if errors:
        raise errors[0]


def mutate(data: bytes, seed: int) -> bytes:
    """Change the rows of a file that is compressed here, and the bytes of another."""
    draw = random.Random(seed)
    kind, content = data[:1] or b"\0", data[1:]
    if draw.random() < 0.02:
        kind = bytes([draw.randrange(len(KINDS))])
    name, _, here = KINDS[kind[0] % len(KINDS)]
    change = {"jsonl": mutators.json_lines, "json": mutators.json_value}.get(name.split(".")[1])
    return kind + (change if change and here else mutators.raw)(content, draw)


def seeds() -> list[bytes]:
    """Return files of each kind."""
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    rows = [
        {"text": "one two"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": None}]},
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "a"}, "b"]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": [{"type": "thinking", "thinking": "x"}]},
            ],
            "tools": '[{"type": "function"}]',
        },
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    asked = [
        {"id": "1", "language": "en", "prompt": "a", "output": "b", "model": "m", "a": 1},
        {"id": 2, "language": "zho", "script": "Hans", "inputs": "a", "prompt": "c", "output": ""},
    ]
    text = b"one\ntwo\r\n\fthree\r\n"
    seeds = []
    for number, (name, packed, here) in enumerate(KINDS):
        content = lines if name.endswith("calib.jsonl") else text
        if name == "calib.json":
            content = json.dumps(rows).encode()
        if name == "prompts.jsonl":
            content = "\n".join(map(json.dumps, asked)).encode()
        mark = bytes([number])
        seeds.append(mark + (content if here else _PACK[packed](content)))
        if not here:
            seeds.append(mark + 2 * _PACK[packed](content))
            seeds.append(mark + _PACK[packed](bytes(2**25)))
        elif not packed:
            seeds += [mark + content.decode().encode(each) for each in ("utf-16", "utf-32-be")]
    return seeds


WORDS = [
    "text", "messages", "conversations", "tools", "role", "content", "from", "value", "type",
    "tool_calls", "arguments", "function", "thinking", "reasoning_content", "language", "prompt",
    "output", "\ufeff", "\f", "\r\n", "\\ud800", "null",
]  # fmt: skip

if __name__ == "__main__":
    harness.fuzz(read, seeds(), mutate, WORDS)
