"""What a run calls the files of its model: it goes on with the same content, and reads it once."""

import json
import os
import shutil

import pytest
from small_models import tiny_llama

import mlcalib
from mlcalib.common.sha256 import file_sha256
from mlcalib.quantization import model_files
from mlcalib.quantization.model_files import ModelFiles

WEIGHTS = "model.safetensors"


def file_hashes(folder):
    """What an mlcalib that hashed everything at the start called the files."""
    kinds = (".json", ".jinja", ".model", ".safetensors")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    return {path.name: file_sha256(path) for path in files}


@pytest.fixture
def model(tmp_path, tokenizer):
    tiny_llama(vocabulary=384).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def large(monkeypatch):
    """Files of more than 100 kB are too large to be hashed at a start; returns those that were."""
    hashed = []
    sha256 = model_files.file_sha256
    monkeypatch.setattr(model_files, "_SMALL", 100_000)
    monkeypatch.setattr(
        model_files, "file_sha256", lambda file: (hashed.append(file.name), sha256(file))[1]
    )
    return hashed


def touch(model):
    os.utime(model / WEIGHTS, (1, 1))


def change(model):
    data = bytearray((model / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (model / WEIGHTS).write_bytes(data)


def begun(model, folder):
    folder.mkdir(exist_ok=True)
    files = ModelFiles(str(model), folder)
    with files.hashed(to_the_end=True):
        return files.identities()


def test_small_files_are_called_by_their_content(model, tmp_path):
    assert begun(model, tmp_path / "run") == file_hashes(model)
    assert not list((tmp_path / "run").iterdir())


def test_a_start_reads_no_large_file(model, tmp_path, large):
    called = ModelFiles(str(model), tmp_path / "run").identities()
    assert WEIGHTS not in large
    assert "bytes, modified" in called[WEIGHTS]
    assert begun(model, tmp_path / "run") == called
    known = json.loads((tmp_path / "run/model.json").read_text())[WEIGHTS]
    assert known["sha256"] == file_hashes(model)[WEIGHTS]
    assert begun(model, tmp_path / "run") == called
    assert WEIGHTS not in large


def test_the_same_content_is_gone_on_with(model, tmp_path, large):
    called = begun(model, tmp_path / "run")
    touch(model)
    assert begun(model, tmp_path / "run") == called
    assert large.count(WEIGHTS) == 1
    assert begun(model, tmp_path / "run") == called
    assert large.count(WEIGHTS) == 1  # its new time is known
    shutil.copytree(model, tmp_path / "copy")
    assert begun(tmp_path / "copy", tmp_path / "run") == called
    change(model)
    assert ModelFiles(str(model), tmp_path / "run").identities() != called


def test_what_was_begun_with_hashes_goes_on(model, tmp_path, large):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text("{}")
    assert begun(model, tmp_path / "run") == file_hashes(model)
    assert begun(model, tmp_path / "run") == file_hashes(model)
    assert large.count(WEIGHTS) == 1
    change(model)
    assert ModelFiles(str(model), tmp_path / "run").identities() != file_hashes(model)


@pytest.mark.usefixtures("large")
def test_a_run_goes_on_with_a_model_that_was_touched(model, calibration, tmp_path, monkeypatch):
    options = {"group_size": 32, "progress": False}
    mlcalib.quantize_checkpoint(model, tmp_path / "whole", calibration, **options)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlcalib.quantization.quantize_checkpoint.finish", dies)
        with pytest.raises(KeyboardInterrupt):
            mlcalib.quantize_checkpoint(model, tmp_path / "out", calibration, **options)
    parts = tmp_path / ".out.parts"
    if json.loads((parts / "model.json").read_text())[WEIGHTS]["sha256"] is None:
        begun(model, parts)  # the run was over before the hash
    touch(model)
    mlcalib.quantize_checkpoint(model, tmp_path / "out", calibration, **options)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("mlcalib.quantization.quantize_checkpoint.finish", dies)
        with pytest.raises(KeyboardInterrupt):
            mlcalib.quantize_checkpoint(model, tmp_path / "other", calibration, **options)
    change(model)
    with pytest.raises(ValueError, match=r'model.model.safetensors was "\d+ bytes, modified'):
        mlcalib.quantize_checkpoint(model, tmp_path / "other", calibration, **options)
