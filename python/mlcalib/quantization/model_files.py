"""Which files a run's model comes from: told apart without reading tens of gigabytes at a start."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcalib.common.files import atomic_file
from mlcalib.common.hub import model_folder
from mlcalib.common.safetensors_read import read_json, validate_folder
from mlcalib.common.sha256 import file_sha256

_BESIDE = (".json", ".jinja", ".model")  # configs, tokenizer and templates decide a result too
_SMALL = 64 * 2**20  # bytes that are hashed at once
_CHUNK = 2**22
_log = logging.getLogger(__name__)


class ModelFiles:
    """The files of a model, and what a run that can be gone on with calls them.

    A small file is called by its sha256, a large one by the size and time that it had when the run
    began. Its sha256 is found while the run reads the model, and kept in ``model.json``, so that a
    run goes on with files that were copied or touched since: where size or time differ, and only
    there, the content decides. A run that was begun by an mlcalib that called all files by their
    sha256 goes on with these.
    """

    def __init__(self, model: str, folder: Path) -> None:
        """Find the files.

        Args:
            model: a folder with safetensors, a hub name, or a GGUF file.
            folder: where the run keeps what is done.

        Raises:
            ValueError: a damaged checkpoint.
        """
        self._files = {file.name: file for file in _files(model)}
        self._path = folder / "model.json"
        known = read_json(self._path) if self._path.is_file() else {}
        manifests = [*folder.glob("manifest.json"), *folder.glob("parts/*/manifest.json")]
        begun = not known and bool(manifests)
        self._large = {
            name: _entry(file, known.get(name), begun=begun)
            for name, file in self._files.items()
            if file.stat().st_size > _SMALL
        }

    def identities(self) -> dict[str, str]:
        """Return name → what the run calls a file; equal if the content is."""
        return {
            name: self._large[name]["identity"] if name in self._large else file_sha256(file)
            for name, file in self._files.items()
        }

    @contextmanager
    def hashed(self, *, to_the_end: bool) -> Iterator[None]:
        """Hash large files on a thread while inside; call it when the run may go on.

        Args:
            to_the_end: whether to wait for what is left when all else is done.
        """
        if not self._large:
            yield
            return
        self._write()
        stop = threading.Event()
        thread = threading.Thread(target=self._hash, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
            if to_the_end:
                thread.join()
        finally:
            stop.set()
            thread.join()

    def _hash(self, stop: threading.Event) -> None:
        for name, entry in self._large.items():
            if entry["sha256"] is not None:
                continue
            digest = hashlib.sha256()
            try:
                with self._files[name].open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        if stop.is_set():
                            return
                        digest.update(chunk)
                if _stat(self._files[name]) == entry["stat"]:  # nobody has written it meanwhile
                    entry["sha256"] = digest.hexdigest()
                    self._write()
            except OSError as error:
                _log.warning("%s could not be hashed: %s", self._files[name], error)

    def _write(self) -> None:
        with atomic_file(self._path) as file:
            json.dump(self._large, file, indent=2)


def outline(model: str) -> dict[str, str]:
    """Return what can be said quickly of a model's files, wherever a copy of them lies.

    Of small files the sha256; of large ones the size, and the sha256 of where they begin, which is
    the header of weights.
    """
    found = {}
    for path in _files(model):
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = hashlib.sha256(file.read(_SMALL if size <= _SMALL else _CHUNK)).hexdigest()
        found[path.name] = f"{size} bytes, {begin}"
    return found


def _entry(file: Path, known: dict[str, Any] | None, *, begun: bool) -> dict[str, Any]:
    """Return what a run calls a large file.

    Args:
        file: the file.
        known: what the run called the file of that name; None for nothing.
        begun: whether the run was begun by an mlcalib that called it by its sha256.
    """
    stat = _stat(file)
    if known is None:
        sha256 = file_sha256(file) if begun else None
        return {"identity": sha256 or stat, "stat": stat, "sha256": sha256}
    if known["stat"] == stat:
        return known
    if known["sha256"] is not None and file_sha256(file) == known["sha256"]:
        return {**known, "stat": stat}
    return {"identity": stat, "stat": stat, "sha256": None}


def _stat(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} bytes, modified {found.st_mtime_ns}"


def _files(model: str) -> list[Path]:
    """Return the files that decide a result: weights, configs, tokenizer and templates."""
    if (path := Path(model)).is_file():
        return [path]
    folder = model_folder(model)
    beside = {file for file in folder.iterdir() if file.suffix in _BESIDE}
    return sorted(beside | set(validate_folder(folder).values()))
