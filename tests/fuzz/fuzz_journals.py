"""What mlcalib wrote and reads again: results, journals, keys, ratings, caches, studies, …."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import harness
import mutators

with harness.instrumented():
    from mlcalib.checkpoints.record import origin
    from mlcalib.common.sha256 import json_sha256
    from mlcalib.corpora.translated import read_translation
    from mlcalib.evaluation.cache import Cache
    from mlcalib.evaluation.tasks.kept import KEPT, add_kept
    from mlcalib.evaluation.tasks.outcome import TaskResults
    from mlcalib.judging.answers import AnswerLine
    from mlcalib.judging.journal import Journal
    from mlcalib.judging.page import Key, read_key
    from mlcalib.judging.ratings import read_ratings
    from mlcalib.judging.run import Judgement
    from mlcalib.quantization.block_files import BlockFiles
    from mlcalib.quantization.hidden_states import HiddenStatesOnDisk
    from mlcalib.quantization.manifest import claim
    from mlcalib.report.study_report.folder import read_study
    from mlcalib.results.generations import Source
    from mlcalib.results.rows import ItemScores, Row, read_results

from fuzz_safetensors import safetensors


class Kind(NamedTuple):
    """Something that is read.

    Attributes:
        name: of the file that changes.
        beside: other files of the folder, which do not.
        content: of the file when it is whole.
        read: reads the folder.
        lines: whether the file is JSON lines.
    """

    name: str
    beside: dict[str, bytes]
    content: bytes
    read: Callable[[Path], Any]
    lines: bool = False


def read(folder: Path, data: bytes) -> None:
    """Read what the first byte says, with the rest in place of its file."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    for name, content in {**kind.beside, kind.name: data[1:]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        kind.read(folder)
    finally:
        for each in folder.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def mutate(data: bytes, seed: int) -> bytes:
    """Change a value of the JSON, or bytes."""
    draw = random.Random(seed)
    kind, content = data[:1] or b"\0", data[1:]
    lines = KINDS[kind[0] % len(KINDS)].lines
    return kind + (mutators.json_lines if lines else mutators.json_value)(content, draw)


def _json(*rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


ROW = Row("m", "gptq", "en", "en", "xnli", "acc", 0.5, None, 2)
ITEMS = ItemScores("m", "gptq", "en", "en", "xnli", "acc", [1, 0])
LOSS = ItemScores("m", "gptq", "en", "en", "perplexity", "token", [1.5, 2.5], [3, 4])
LOSS_ROW = Row("m", "gptq", "en", "en", "perplexity", "token", 0.5, 0.1, 7, 0, "a 1", "bos <s>")
KEY = Key("f", (Source("a"), Source("b", "gptq", "en")), {"en": {"1": True, "2": False}})
RATINGS = {
    "format": "mlcalib ratings 1", "fingerprint": "f", "rater": "r",
    "ratings": [
        {"language": "en", "id": "1", "better": 1, "left": 0},
        {"language": "en", "id": "2", "better": "tie", "left": 1},
    ],
}  # fmt: skip
CACHED = {"task": "benchmarks"}
MEASURED = {
    "rows": [ROW.record()],
    "items": {"acc": {"en": [1.0, 0.0]}},
    "generations": {"xnli": {"en": [{"prompt": "a", "output": "b", "reference": None}]}},
    "missing": [
        {"task": "xnli", "language": "en", "metric": None, "reason": "r", "fillers": ["a"]}
    ],
}
RECORD = {"calibration": {"set": "en"}, "recipe": {"method": "gptq"}}
SHAPES = {"position": 0, "shape": [1, 2, 3], "dtype": "float32"}
STUDY = {
    "layout": 1, "name": "s", "models": {"m": {"source": "M"}},
    "settings": {"en": {"set": "en", "tokens": 9, "languages": {"en": 9}}},
    "variants": {"v": {"setting": "en", "method": "gptq", "quantizer": "g", "options": {}}},
}  # fmt: skip
EVALUATION = {
    "rows": [ROW.record()],
    "documents": {"en": {"loss": [1.0, 2.0], "tokens": [2, 3], "bytes": [4, 5]}},
    "items": {"xnli": {"en": [1, 0, None]}}, "missing": MEASURED["missing"], "seconds": 1.0,
}  # fmt: skip
FLOAT = {"m/evaluations/float.json": _json(EVALUATION)}
RECORDED = {
    "losses": {"a": {"en": 1.0}}, "heldout": {}, "warnings": ["w"], "seconds": {"s": 1.0},
    "bytes": 3,
}  # fmt: skip
BLOCK = json.dumps({"names": ["a"], "loss": {"en": 1.0}})


def _results(folder: Path) -> None:
    json.dumps([asdict(row) for row in read_results(folder / "rows.jsonl")])


def _journal(kind: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        with Journal(folder / "out.jsonl", "f", "lines", kind) as journal:
            for row in journal.rows:
                hash(row)

    return read


def _kept(folder: Path) -> None:
    cache = Cache(folder)
    path = next((folder / "benchmarks").iterdir())
    value = cache.get(CACHED, KEPT)
    harness.promise(value is not None, f"{path} is not found")
    if hasattr(value, "rows"):
        add_kept(value, TaskResults("m", "gptq", "en", 0))


def _tensor(folder: Path) -> None:
    Cache(folder).get_tensor(CACHED)


def _known_files(folder: Path) -> None:
    Cache(folder).sha256(folder / "files.json")


def _hidden(folder: Path) -> None:
    states = HiddenStatesOnDisk(folder)
    states.read("en", 0)


def _block(folder: Path) -> None:
    blocks = BlockFiles(folder)
    blocks.record("0")
    blocks.tensors("0")
    blocks.pieces("0")


def _claim(folder: Path) -> None:
    claim(folder, "The run", {"a": {"b": [1]}, "c": "d"})


def _cache_name(suffix: str) -> str:
    return f"benchmarks/{json_sha256(CACHED)}{suffix}"


KINDS = [
    Kind("rows.jsonl", {}, _json(ROW.record(), LOSS_ROW.record()), _results, lines=True),
    Kind(
        "rows.items", {"rows.jsonl": _json(ROW.record(), LOSS_ROW.record())},
        _json(asdict(ITEMS), asdict(LOSS)), _results, lines=True,
    ),
    Kind(
        "out.jsonl", {},
        _json({"language": "en", "id": "1", "output": "a", "fingerprint": "f"}) + b"\n",
        _journal(AnswerLine), lines=True,
    ),
    Kind(
        "out.jsonl", {},
        _json(*(
            {"language": "en", "id": "1", "order": order, "letter": letter, "fingerprint": "f"}
            for order, letter in (("first-second", "A"), ("second-first", None))
        )) + b"\n{",
        _journal(Judgement), lines=True,
    ),
    Kind("k.key.json", {}, _json(asdict(KEY)), lambda folder: read_key(folder / "k.key.json")),
    Kind("r.json", {}, _json(RATINGS), lambda folder: read_ratings([folder / "r.json"], KEY)),
    Kind(_cache_name(".json"), {}, _json({"key": CACHED, "value": MEASURED}), _kept),
    Kind(_cache_name(".safetensors"), {}, safetensors({"tensor": ("F32", [2], 8)}), _tensor),
    Kind("files.json", {}, _json({"/a": [1, 2, 3, "f"]}), _known_files),
    Kind("mlcalib.json", {}, _json(RECORD), origin),
    Kind(
        "t.json", {}, _json({"text": "a", "cut_off": 0, "blank": 1}),
        lambda folder: read_translation(folder / "t.json"),
    ),
    Kind("hidden_states.json", {"en-0.bin": bytes(48)}, _json(SHAPES), _hidden),
    Kind("0.safetensors", {}, safetensors({"a": ("U8", [3], 3)}, record=BLOCK), _block),
    Kind("manifest.json", {}, _json({"a": {"b": [1]}, "c": "d"}), _claim),
    Kind("study.json", FLOAT, _json(STUDY), read_study),
    Kind(
        "m/evaluations/v.json", {"study.json": _json(STUDY), **FLOAT}, _json(EVALUATION),
        read_study,
    ),
    Kind("m/variants/v.json", {"study.json": _json(STUDY)}, _json(RECORDED), read_study),
    Kind(
        "m/layers.json", {"study.json": _json(STUDY)},
        _json({"power": {"a": {"en": 1.0}}, "ranges": {"a": {"en": [0.0, 1.0]}}}), read_study,
    ),
    Kind("m/costs.json", {"study.json": _json(STUDY)}, _json({"seconds": {"a": 1.0}}), read_study),
]  # fmt: skip
"""By the first byte of an input."""


def seeds() -> list[bytes]:
    """Return each kind of file, whole."""
    return [bytes([number]) + kind.content for number, kind in enumerate(KINDS)]


WORDS = ["fingerprint", "null", "true", "language", "seconds", "record", "names"]

if __name__ == "__main__":
    harness.fuzz(read, seeds(), mutate, WORDS)
