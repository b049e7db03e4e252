"""Models of the hub: what is fetched, and what is done without a network."""

import errno
import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from small_models import tiny_llama
from test_conversion import HALF, saved

import mlcalib
from mlcalib._core import GridSpec
from mlcalib.common.compat import hub_commit
from mlcalib.common.hub import hub_name, located, model_folder, split_revision
from mlcalib.common.safetensors_read import validate_folder
from mlcalib.evaluation.tasks.data import from_hub
from mlcalib.models.context import read_config
from mlcalib.models.loading import load_tokenizer

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with one quantized model, ``me/tiny``; there is no network."""
    cache = tmp_path / "cache"
    repository = cache / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(SHA)
    saved(repository / "snapshots" / SHA, "gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_what_is_cached_needs_no_network(cache):
    assert model_folder("me/tiny").name == SHA
    logits = mlcalib.load("me/tiny")(torch.arange(4)[None]).logits
    assert logits.isfinite().all()


def test_a_revision_and_a_token_are_options(cache, monkeypatch):
    repository, seen = cache / "models--me--tiny", []
    (repository / "refs/v2").write_text(SHA)
    fetch = huggingface_hub.snapshot_download

    def fetched(name, **options):
        seen.append((name, options["token"], options.get("revision")))
        return fetch(name, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    mlcalib.load("me/tiny", revision="v2", token="hf_secret")
    assert seen == [("me/tiny", "hf_secret", "v2"), ("me/tiny", "hf_secret", SHA)]
    seen.clear()
    mlcalib.load("me/tiny", revision="v2")
    assert seen == [("me/tiny", None, "v2"), ("me/tiny", None, SHA)]
    assert located("me/tiny", "v2", None) == "me/tiny@v2"
    assert located("me/tiny@v2", None, "hf_secret") == str(repository / "snapshots" / SHA)


def test_records_name_the_hub_and_not_the_cache(cache, tokenizer):
    model = tiny_llama(vocabulary=384)
    folder = cache / "models--me--float-model" / "snapshots" / SHA
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert hub_name(str(folder)) == f"me/float-model@{SHA}"
    options = {"revision": SHA, "token": "hf_secret"}
    text = mlcalib.calibration("me/float-model", "en", "sample", tokens=64, seq_len=32, **options)
    quantized = mlcalib.quantize("me/float-model", text, group_size=32, progress=False, **options)
    assert quantized.recipe["model"] == f"me/float-model@{SHA}"
    assert "hf_secret" not in json.dumps(quantized.metadata("dense"))
    assert text.arguments["tokenizer"] == f"me/float-model@{SHA}"


def test_a_revision_of_what_is_here_is_refused(cache, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"revision= is for models of the hub, but .* is on this"):
        mlcalib.load(tmp_path, revision="v2")
    with pytest.raises(ValueError, match=r"token= is for models of the hub, but .* is in memory"):
        mlcalib.quantize(tiny_llama(), tokenizer=tokenizer, method="rtn", token="hf_secret")
    with pytest.raises(ValueError, match=r"'me/tiny@v1' has a revision, and revision= was given"):
        mlcalib.load("me/tiny@v1", revision="v2")


def test_a_revision_is_part_of_the_name(cache, tokenizer):
    repository, other = cache / "models--me--tiny", SHA[::-1]
    (repository / "refs/v2").write_text(other)
    shutil.copytree(repository / "snapshots" / SHA, repository / "snapshots" / other)
    changed = repository / "snapshots" / other
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 77}))
    tokenizer.save_pretrained(changed)
    assert model_folder("me/tiny@v2").name == model_folder(f"me/tiny@{other}").name == other
    assert mlcalib.load("me/tiny@v2").config.max_position_embeddings == 77
    assert read_config("me/tiny@v2")["max_position_embeddings"] == 77
    assert read_config("me/tiny")["max_position_embeddings"] != 77
    assert hub_commit("me/tiny@v2") == other
    assert len(load_tokenizer("me/tiny@v2")) == len(tokenizer)
    with pytest.raises(FileNotFoundError, match=r"hf download me/tiny --revision v3"):
        mlcalib.load("me/tiny@v3")
    for wrong in ("me/tiny@", "@v2"):
        with pytest.raises(ValueError, match="expected NAME@REVISION"):
            mlcalib.load(wrong)


def test_folders_may_have_an_at(tmp_path, monkeypatch):
    (tmp_path / "a@b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_folder("a@b") == Path("a@b")
    assert split_revision(str(tmp_path / "c@d")) == (str(tmp_path / "c@d"), {})


def test_what_is_not_cached_says_what_to_do(cache):
    with pytest.raises(FileNotFoundError, match=r"hf download me/other\), or give a folder"):
        mlcalib.load("me/other")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        mlcalib.load("./other")


def test_only_what_the_index_names_is_fetched(tmp_path, monkeypatch):
    there = {
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": "part-1.safetensors"}}),
        **dict.fromkeys(("config.json", "tokenizer.model", "chat_template.jinja"), "{}"),
        **dict.fromkeys(("part-1.safetensors", "consolidated.safetensors", "x.bin"), "weights"),
    }

    def fetch(name, allow_patterns, token=None, revision=None):
        assert revision in (None, SHA)
        folder = tmp_path / SHA
        folder.mkdir(exist_ok=True)
        for file, content in there.items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).write_text(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    fetched = {path.name for path in model_folder("me/big").iterdir()}
    assert fetched == there.keys() - {"consolidated.safetensors", "x.bin"}
    shutil.rmtree(tmp_path / SHA)
    del there["model.safetensors.index.json"]
    there["model.safetensors"] = "weights"
    assert "model.safetensors" in {path.name for path in model_folder("me/small").iterdir()}


def test_a_cache_that_cannot_be_written_is_read(cache, monkeypatch, caplog):
    fetch = huggingface_hub.snapshot_download

    def refuses(name, *, local_files_only=False, **options):
        if not local_files_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(cache))
        return fetch(name, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuses)
    assert validate_folder(model_folder("me/tiny"))
    assert "cannot be written" in caplog.text


def test_folders_are_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "50% a?b").mkdir()
    assert model_folder(str(tmp_path / "50% a?b")) == tmp_path / "50% a?b"
    assert model_folder("~/50% a?b") == Path(tmp_path / "50% a?b")


def test_a_quantized_model_is_uploaded_whole(calibration, tokenizer, monkeypatch):
    calls, sent = [], {}

    class Hub:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, folder_path, **options):
            sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            calls.append(options)
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    made = mlcalib.quantize(
        tiny_llama(vocabulary=384), calibration, tokenizer=tokenizer, group_size=32, format="gptq"
    )
    address = made.push_to_hub("tiny", private=True, token="t", revision="dev")
    assert address == "https://hub/commit"
    assert calls == [
        "t",
        ("tiny", {"private": True, "exist_ok": True}),
        {"repo_id": "me/tiny", "commit_message": "gptq by mlcalib, gptq", "revision": "dev"},
    ]
    assert {"model.safetensors", "config.json", "README.md", "mlcalib.json"} <= sent.keys()


def test_tasks_without_data_say_where_it_may_be():
    for error in (ConnectionError("offline"), ValueError("Couldn't find cache for x")):
        with (
            pytest.raises(ConnectionError, match=r"data of xnli .*--data FOLDER"),
            from_hub("xnli"),
        ):
            raise error
    with pytest.raises(ValueError, match="another"), from_hub("xnli"):
        raise ValueError("another")
