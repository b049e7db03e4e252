"""What was measured once is not measured again; a killed evaluation resumes."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from small_models import tiny_llama

import mlcalib
from mlcalib.common import compat
from mlcalib.common.sha256 import json_sha256, tensors_sha256
from mlcalib.evaluation import Cache, subject
from mlcalib.evaluation import scorer as scoring
from mlcalib.results.rows import read_rows

KEY = {"task": "perplexity", "language": "sw", "model": "a", "tokens": 9}
OPTIONS = {"tokens": 150, "seq_len": 32, "progress": False}


def test_values_and_tensors_come_back(tmp_path):
    cache = Cache(tmp_path / "new")
    assert cache.get(KEY) is None
    value = {"loss": [0.1, 1 / 3, 1e-300], "text": "苏"}
    cache.put(KEY, value)
    assert Cache(tmp_path / "new").get(dict(reversed(KEY.items()))) == value
    assert cache.get({**KEY, "tokens": 10}) is None
    assert not cache.has_tensor(KEY)
    tensor = torch.randn(3, 4).bfloat16()
    cache.put_tensor(KEY, tensor.T)
    assert cache.has_tensor(KEY)
    assert torch.equal(cache.get_tensor(KEY), tensor.T)
    assert cache.get(KEY) == value
    assert sorted(path.suffix for path in (tmp_path / "new" / "perplexity").iterdir()) == [
        ".json",
        ".safetensors",
    ]


def test_bad_caches_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; give a folder for the cache"):
        Cache(tmp_path / "file")
    cache = Cache(tmp_path)
    cache.put(KEY, 1)
    [path] = (tmp_path / "perplexity").iterdir()
    for damaged in ("{", "[]", '{"key": {}, "value": 2}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=rf"{path.name} is not a result .* remove it"):
            cache.get(KEY)
    cache.put(KEY, {"loss": ["a"]})
    with pytest.raises(ValueError, match=rf"{path.name} is not a result .*valid number"):
        cache.get(KEY, dict[str, list[float]])
    with pytest.raises(ValueError, match="Out of range float"):
        cache.put({**KEY, "tokens": 1}, float("nan"))
    assert list((tmp_path / "perplexity").iterdir()) == [path]


def test_a_file_is_hashed_again_only_after_it_changed(tmp_path, monkeypatch):
    file, cache = tmp_path / "weights", Cache(tmp_path / "cache")
    file.write_bytes(b"one")
    first = cache.sha256(file)
    stat = file.stat()
    monkeypatch.setattr("mlcalib.evaluation.cache.file_sha256", None)
    assert Cache(tmp_path / "cache").sha256(file) == first
    monkeypatch.undo()
    file.write_bytes(b"two")  # as long, and made to look as old
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert cache.sha256(file) != first


def test_fingerprints():
    assert json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1})
    tensor = torch.arange(6.0)
    known = tensors_sha256({"x": tensor})
    assert known == tensors_sha256({"x": tensor.clone()})
    assert known == tensors_sha256({"x": torch.stack([tensor, tensor]).T[:, 0]})
    others = [{"y": tensor}, {"x": tensor.view(2, 3)}, {"x": tensor.view(torch.int32)}]
    others += [{"x": tensor, "z": torch.tensor(1)}]
    assert len({known, *map(tensors_sha256, others)}) == 5


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tokenizer, tmp_path):
    models = (tiny_llama(vocabulary=384, seed=seed) for seed in range(3))
    return [save(each, tokenizer, tmp_path / f"{at}") for at, each in enumerate(models)]


@pytest.fixture
def scored(monkeypatch):
    """The number of texts that were scored, and of models that were loaded, since last asked."""
    counts = {"scored": 0, "loaded": 0}

    def counting(module, name, what):
        inner = getattr(module, name)

        def outer(*args, **kwargs):
            counts[what] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(module, name, outer)

    counting(scoring, "score", "scored")
    counting(scoring, "recorded_score", "scored")
    counting(subject, "load_to_run", "loaded")

    def taken():
        found = (counts["scored"], counts["loaded"])
        counts.update(scored=0, loaded=0)
        return found

    return taken


@pytest.mark.parametrize("fidelity", [False, True])
def test_nothing_is_scored_twice(folders, tmp_path, scored, fidelity):
    options = {**OPTIONS, "cache": tmp_path / "cache", "fidelity": fidelity}
    plain = mlcalib.evaluate(folders[:2], "en,sw", **{**options, "cache": None})
    assert scored() == (4, 2)
    assert mlcalib.evaluate(folders[:2], "en,sw", **options) == plain
    assert scored() == (4, 2)
    assert mlcalib.evaluate(folders[:2], "en,sw", **options) == plain
    assert scored() == (0, 0)
    rows = mlcalib.evaluate(folders, "en,sw", **options)
    assert rows[: len(plain)] == plain
    assert scored() == (2, 2 if fidelity else 1)  # of the first its head alone is needed
    mlcalib.evaluate(folders[:2], "en,sw,fr", **options)
    assert scored() == (2, 2)
    mlcalib.evaluate(folders[1], "sw", **{**options, "fidelity": False})
    assert scored() == (0, 0)


def test_fidelity_after_perplexity_runs_what_it_needs(folders, tmp_path, scored):
    options = {**OPTIONS, "cache": tmp_path / "cache"}
    plain = mlcalib.evaluate(folders[:2], "en", **options)
    assert scored() == (2, 2)
    rows = mlcalib.evaluate(folders[:2], "en", fidelity=True, **options)
    assert [row for row in rows if row.task == "perplexity"] == plain
    assert scored() == (2, 2)
    mlcalib.evaluate([folders[2], folders[1]], "en", fidelity=True, **options)
    assert scored() == (2, 2)  # another reference


def test_what_changes_results_is_noticed(folders, tokenizer, tmp_path, scored):
    options = {**OPTIONS, "dtype": "float32", "cache": tmp_path / "cache"}

    def scored_again(**changed):
        mlcalib.evaluate(folders[0], "en", **{**options, **changed})
        return scored()[0]

    assert scored_again() == 1
    assert scored_again(tokens=140) == 1
    assert scored_again(seq_len=16) == 1
    assert scored_again(separator="eos") == 1
    assert scored_again(dtype="bfloat16") == 1
    assert scored_again() == 0
    (folders[0] / "README.md").write_text("a model card")
    assert scored_again() == 0
    file = folders[0] / "model.safetensors"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert scored_again() == 1
    config = folders[0] / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert scored_again() == 1
    assert scored_again() == 0


def test_models_in_memory_are_known_by_their_weights(tokenizer, tmp_path, scored):
    model = tiny_llama(vocabulary=384)
    make = {"method": "rtn", "tokenizer": tokenizer, "group_size": 32, "progress": False}
    options = {**OPTIONS, "cache": tmp_path / "cache"}
    first = mlcalib.evaluate(mlcalib.quantize(model, bits=4, **make), "en", **options)
    assert scored()[0] == 1
    assert mlcalib.evaluate(mlcalib.quantize(model, bits=4, **make), "en", **options) == first
    assert scored()[0] == 0
    mlcalib.evaluate(mlcalib.quantize(model, bits=8, **make), "en", **options)
    assert scored()[0] == 1


def test_other_versions_are_other_results(folders, tmp_path, scored, monkeypatch):
    options = {**OPTIONS, "cache": tmp_path / "cache"}
    mlcalib.evaluate(folders[0], "en", **options)
    monkeypatch.setattr(scoring, "versions", lambda: "mlcalib 99")
    mlcalib.evaluate(folders[0], "en", **options)
    assert scored()[0] == 2


def test_a_hub_name_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "hub_commit", lambda _: "0123456789" * 4)
    cache = Cache(tmp_path / "cache")
    found = {subject.Subject(name).fingerprint(cache) for name in ("org/a", "org/b", "org/a")}
    assert len(found) == 2
    monkeypatch.setattr(compat, "hub_commit", lambda _: None)
    with pytest.raises(ValueError, match="'org/a' comes from the hub without a commit"):
        subject.Subject("org/a").fingerprint(cache)


KILLED = """
import os, signal, sys
import mlcalib
from mlcalib.evaluation import scorer, write_rows

calls = []

def deadly(score):
    def outer(*args, **kwargs):
        calls.append(args)
        if len(calls) > int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return score(*args, **kwargs)
    return outer

scorer.score, scorer.recorded_score = deadly(scorer.score), deadly(scorer.recorded_score)
options = {"tokens": 150, "seq_len": 32, "progress": False, "fidelity": True}
rows = mlcalib.evaluate(sys.argv[4:], "en,sw,fr", cache=sys.argv[2], **options)
write_rows(rows, sys.argv[3])
"""


def test_an_evaluation_that_was_killed_resumes(folders, tmp_path, scored):
    def run(calls, cache, out):
        command = [sys.executable, "-c", KILLED, str(calls), cache, out, *folders[:2]]
        return subprocess.run(command, check=False).returncode

    out, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    assert run(4, cache, out) == -signal.SIGKILL  # three of the first model, one of the second
    assert not out.exists()
    names = sorted(path.parent.name for path in cache.rglob("*.*") if path.parent != cache)
    assert names == ["fidelity", *["perplexity"] * 4, *["states"] * 3]
    options = {**OPTIONS, "fidelity": True}
    resumed = mlcalib.evaluate(folders[:2], "en,sw,fr", cache=cache, **options)
    assert scored() == (2, 2)  # the first is loaded for its head
    assert resumed == mlcalib.evaluate(folders[:2], "en,sw,fr", **options)
    assert run(0, cache, out) == 0  # nothing is left to score
    assert read_rows(out) == resumed


def test_a_file_that_was_being_written_does_no_harm(folders, tmp_path, scored):
    options = {**OPTIONS, "cache": tmp_path / "cache"}
    rows = mlcalib.evaluate(folders[0], "en", **options)
    [whole] = (tmp_path / "cache" / "perplexity").iterdir()
    half = whole.with_name(f".{whole.name}.partial-1")
    half.write_text(whole.read_text()[:100])
    whole.unlink()
    assert mlcalib.evaluate(folders[0], "en", **options) == rows
    assert scored()[0] == 2
    assert whole.is_file()


def test_states_that_were_removed_are_made_again_where_they_are_needed(folders, tmp_path, scored):
    options = {**OPTIONS, "cache": tmp_path, "fidelity": True}
    first = mlcalib.evaluate(folders[:2], "en,sw", **options)
    assert scored() == (4, 2)
    Cache(tmp_path).drop("states")
    assert not (tmp_path / "states").exists()
    assert mlcalib.evaluate(folders[:2], "en,sw", **options) == first
    assert scored() == (0, 0)  # nothing is compared anew
    rows = mlcalib.evaluate(folders, "en,sw", **options)
    assert scored() == (4, 2)  # two texts of the first, two of the third
    assert rows == mlcalib.evaluate(folders, "en,sw", **{**options, "cache": None})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"/a": 1}', "[" * 500 + "]" * 500])
def test_a_damaged_list_of_known_files_is_named(content, tmp_path):
    (tmp_path / "files.json").write_text(content)
    with pytest.raises(ValueError, match=r"files\.json is not a list of known files .* remove it"):
        Cache(tmp_path).sha256(tmp_path / "files.json")


def test_a_damaged_tensor_is_named(tmp_path):
    cache = Cache(tmp_path)
    cache.put_tensor(KEY, torch.zeros(3))
    [path] = (tmp_path / "perplexity").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole.replace(b'"tensor"', b'"tensox"'), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            cache.get_tensor(KEY)
