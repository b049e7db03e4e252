"""From files to files: the same bytes as in memory, and after any interruption."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from small_text import IDS

import mlcalib
from mlcalib.quantization.block_files import BlockFiles


def same_files(a: Path, b: Path, *, but=()):
    names = {path.name for path in a.iterdir()}
    assert names == {path.name for path in b.iterdir()}
    different = [n for n in names - set(but) if not filecmp.cmp(a / n, b / n, shallow=False)]
    assert different == []


def records_agree(a: Path, b: Path):
    first, second = (json.loads((each / "mlcalib.json").read_text()) for each in (a, b))
    for record in (first, second):
        del record["seconds"]
    assert first == second


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_streamed_is_what_memory_gives(family, saved, calibration, tmp_path):
    source = saved(tiny_model(family, vocabulary=384))
    options = {"group_size": 32, "symmetric": True, "method": "awq", "progress": False}
    options |= {"format": "dense"} if "moe" in family or family == "mixtral" else {}
    mlcalib.quantize(source, calibration, **options).save(
        tmp_path / "a", options.get("format", "compressed-tensors")
    )
    mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])
    records_agree(tmp_path / "a", tmp_path / "b")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("propagate", "correction"), [("float", 0), ("quantized", 0), ("quantized", "auto")]
)
@pytest.mark.parametrize("hidden", ["memory", "disk"])
def test_dtypes_ties_and_propagation(
    dtype, tied, propagate, correction, hidden, saved, calibration, tmp_path
):
    source = saved(tiny_llama(vocabulary=384, tied=tied))
    options = {
        "group_size": 32,
        "dtype": dtype,
        "propagate": propagate,
        "progress": False,
        "correction": correction,
    }
    mlcalib.quantize(source, calibration, **options).save(tmp_path / "a")
    mlcalib.quantize_checkpoint(
        source, tmp_path / "b", calibration, hidden_states=hidden, **options
    )
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])
    records_agree(tmp_path / "a", tmp_path / "b")


def test_without_calibration(saved, tmp_path):
    source = saved(tiny_llama(vocabulary=384))
    options = {"method": "rtn", "group_size": 32, "progress": False}
    mlcalib.quantize(source, **options).save(tmp_path / "a")
    mlcalib.quantize_checkpoint(source, tmp_path / "b", **options)
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])


class Killed(Exception):  # noqa: N818 - not an error of ours
    """Stands for kill -9: nothing is cleaned up after it but by `finally`."""


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gptq", "propagate": "float"},
        {"method": "gptq", "propagate": "quantized"},
        {"method": "gptq", "propagate": "quantized", "correction": 0.5},
        {"method": "awq", "propagate": "float"},
        {"method": "awq", "propagate": "quantized"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("hidden", ["memory", "disk"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_goes_on_where_it_stopped(
    options, hidden, after, saved, calibration, tmp_path, monkeypatch
):
    source = saved(tiny_llama(vocabulary=384, layers=4))
    options = {"group_size": 32, "progress": False, **options}
    mlcalib.quantize_checkpoint(source, tmp_path / "a", calibration, **options)
    options["hidden_states"] = hidden
    write = BlockFiles.write
    written = []

    def failing(self, block, tensors, record):
        write(self, block, tensors, record)
        written.append(block)
        if len(written) == after:
            raise Killed

    monkeypatch.setattr(BlockFiles, "write", failing)
    with pytest.raises(Killed):
        mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    assert len(written) == len(set(written)) == 4  # no block was solved twice
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])
    records_agree(tmp_path / "a", tmp_path / "b")


CHANGES = {
    "recipe.options.bits was 4 and is 8": lambda source, given: given | {"bits": 8},
    "recipe.propagate was .quantized. and is .float.": lambda source, given: (
        given | {"propagate": "float"}
    ),
    "calibration.sha256": lambda source, given: (
        given | {"calibration": mlcalib.calibration(None, corpus=IDS, seq_len=16)}
    ),
    "model.config.json was": lambda source, given: touch(source / "config.json") or given,
}


def touch(path):
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("message", CHANGES)
def test_changed_inputs_are_named(message, saved, calibration, tmp_path, monkeypatch):
    source = saved(tiny_llama(vocabulary=384))
    given = {"calibration": calibration, "group_size": 32, "progress": False}
    monkeypatch.setattr(
        "mlcalib.quantization.quantize_checkpoint.finish", lambda *_: (_ for _ in ()).throw(Killed)
    )
    with pytest.raises(Killed):
        mlcalib.quantize_checkpoint(source, tmp_path / "out", **given)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=message):
        mlcalib.quantize_checkpoint(source, tmp_path / "out", **CHANGES[message](source, given))


def test_two_at_once_are_refused(saved, calibration, tmp_path):
    from mlcalib.common.files import locked

    source = saved(tiny_llama(vocabulary=384))
    with (
        locked(tmp_path / ".out.parts"),
        pytest.raises(BlockingIOError, match="another process is writing"),
    ):
        mlcalib.quantize_checkpoint(source, tmp_path / "out", calibration, group_size=32)


def test_a_full_disk_loses_nothing(saved, calibration, tmp_path, monkeypatch):
    source = saved(tiny_llama(vocabulary=384))
    options = {"group_size": 32, "progress": False, "hidden_states": "disk"}
    mlcalib.quantize_checkpoint(source, tmp_path / "a", calibration, **options)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlcalib.common.safetensors_write._copy", full)
    with pytest.raises(OSError, match=r"cannot write .*layers\.0\.safetensors: No space left"):
        mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    assert not list(tmp_path.rglob("*.partial*"))
    monkeypatch.undo()
    mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])


def test_another_number_of_threads_goes_on_when_asked(saved, tmp_path, monkeypatch):
    source = saved(tiny_llama(vocabulary=384, layers=3))
    text = mlcalib.calibration(None, corpus=IDS, seq_len=32)
    options = {"group_size": 32, "progress": False}
    write = BlockFiles.write

    def failing(self, block, *rest):
        write(self, block, *rest)
        raise Killed

    threads = torch.get_num_threads()
    monkeypatch.setattr(BlockFiles, "write", failing)
    try:
        torch.set_num_threads(1)
        with pytest.raises(Killed):
            mlcalib.quantize_checkpoint(source, tmp_path / "out", text, **options)
        monkeypatch.undo()
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match=r"other threads: threads was 1 and is 2.*--other-thr"):
            mlcalib.quantize_checkpoint(source, tmp_path / "out", text, **options)
        record = mlcalib.quantize_checkpoint(
            source, tmp_path / "out", text, other_threads=True, **options
        )
    finally:
        torch.set_num_threads(threads)
    assert [each["threads"] for each in record["made_with"].values()] == [1, 2, 2]


SCRIPT = """
import sys, torch, mlcalib
torch.set_num_threads(1)
ids = {IDS!r}
calibration = mlcalib.calibration(None, corpus=ids, seq_len=32)
mlcalib.quantize_checkpoint(
    sys.argv[1], sys.argv[2], calibration, group_size=32, hidden_states=sys.argv[3], progress=False
)
"""


def test_killed_processes_leave_the_same_bytes(saved, tmp_path):
    source = saved(tiny_llama(vocabulary=384, layers=6, hidden=128, intermediate=256))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.replace("{IDS!r}", repr(IDS)))

    def start(out):
        with (tmp_path / "errors").open("w") as errors:
            command = [sys.executable, script, source, tmp_path / out, "disk"]
            return subprocess.Popen(list(map(str, command)), stderr=errors)

    whole = start("a")
    parts = tmp_path / ".b.parts" / "blocks"
    for block in (0, 3):  # killed as soon as the block is finished
        process = start("b")
        finished = parts / f"model.layers.{block}.safetensors"
        while process.poll() is None and not finished.is_file():
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert whole.wait() == start("b").wait() == 0, (tmp_path / "errors").read_text()
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])
    assert not parts.parent.exists()


def test_buffers_are_those_of_transformers(saved):
    from mlcalib.models.loading import load_model
    from mlcalib.quantization.open_source import open_source

    for family in ARCHITECTURES:
        folder = saved(tiny_model(family, dtype=torch.bfloat16, vocabulary=384), family)
        found = dict(open_source(str(folder), "auto").model.named_buffers())
        wanted = dict(load_model(str(folder)).named_buffers())
        assert found.keys() == wanted.keys()
        for name, buffer in wanted.items():
            assert found[name].dtype == buffer.dtype
            assert torch.equal(found[name], buffer)


@pytest.mark.parametrize("form", ["gptq", "gptq-v2", "awq", "dense", "gguf"])
@pytest.mark.parametrize("propagate", ["float", "quantized"])
def test_every_format_streams(form, propagate, saved, calibration, tmp_path, monkeypatch):
    size = {"gguf": 32}.get(form, 32)
    source = saved(tiny_llama(vocabulary=384, dtype=torch.float16))
    options = {"group_size": size, "format": form, "propagate": propagate, "progress": False}
    if form == "gguf":
        options["symmetric"] = True
    mlcalib.quantize(source, calibration, **options).save(tmp_path / "a", form)
    write = BlockFiles.write

    def failing(self, block, *rest):
        write(self, block, *rest)
        raise Killed

    monkeypatch.setattr(BlockFiles, "write", failing)
    with pytest.raises(Killed):
        mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    monkeypatch.undo()
    mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    same_files(tmp_path / "a", tmp_path / "b", but=["mlcalib.json"])
