"""Keeps results on disk, so that nothing is measured twice and interrupted evaluations continue.

A key is a JSON object with everything that a result depends on: the task, the fingerprints of the
model and the items, the options and the versions. Its sha256 is the name of the file,
``DIR/TASK/SHA256.json``. The file also contains the key, so that people can read it. Files are
written whole or not at all. So a run that is killed leaves a valid cache, and several runs can
share one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mlcalib.common.checked import as_type
from mlcalib.common.files import atomic_bytes, atomic_file
from mlcalib.common.json_text import loads
from mlcalib.common.safetensors_read import read_header, read_json
from mlcalib.common.sha256 import file_sha256, json_sha256

Key = Mapping[str, Any]
"""A JSON object. It has the key ``task``, whose value is a string."""

_FILES = "files.json"


class Cache:
    """A folder of results.

    Args:
        folder: its path; it is created when the first result is put there.

    Raises:
        NotADirectoryError: the path is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).expanduser()
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; give a folder for the cache (--cache).")

    def get(self, key: Key, kind: Any = Any) -> Any:
        """Return what was put under a key, or None.

        Args:
            key: see ``Key``.
            kind: the type of the value, e.g. a dataclass, of which an instance is returned.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        path = self._path(key, ".json")
        if not path.is_file():
            return None
        try:
            content = loads(path.read_text(encoding="utf-8"))
            if content["key"] != key:
                raise ValueError("its key is another one")
            return as_type(content["value"], kind)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a result that mlcalib kept ({error}); remove it."
            ) from error

    def put(self, key: Key, value: Any) -> None:
        """Keep a value under a key: JSON types with finite numbers, and not None."""
        with atomic_file(self._path(key, ".json")) as file:
            json.dump({"key": key, "value": value}, file, ensure_ascii=False, allow_nan=False)

    def has_tensor(self, key: Key) -> bool:
        """Return whether a tensor was put under a key."""
        return self._path(key, ".safetensors").is_file()

    def get_tensor(self, key: Key) -> Tensor:
        """Return the tensor that was put under a key.

        Raises:
            OSError: the file does not exist.
            ValueError: it is damaged; the message names it.
        """
        from safetensors.torch import load_file

        path = self._path(key, ".safetensors")
        if "tensor" not in read_header(path):
            raise ValueError(f"{path} is not a tensor that mlcalib kept; remove it.")
        return load_file(path)["tensor"]

    def put_tensor(self, key: Key, tensor: Tensor) -> None:
        """Keep a tensor under a key, which may also have a value."""
        from safetensors.torch import save

        content = save({"tensor": tensor.contiguous()}, {"key": json.dumps(key)})
        with atomic_bytes(self._path(key, ".safetensors")) as file:
            file.write(content)

    def drop(self, task: str) -> None:
        """Remove everything that was put under a task, and nothing else."""
        shutil.rmtree(self._folder / task, ignore_errors=True)

    def sha256(self, path: str | Path) -> str:
        """Return the sha256 (hex) of a file, which is read again only after it has changed.

        A file has changed if its size or one of its times (st_mtime_ns, st_ctime_ns) has.
        """
        path = Path(path).resolve()
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self._known_files()
        if str(path) in known and known[str(path)][:-1] == state:
            return str(known[str(path)][-1])
        digest = file_sha256(path)
        with atomic_file(self._folder / _FILES) as file:
            json.dump({**self._known_files(), str(path): [*state, digest]}, file, indent=1)
        return digest

    def _known_files(self) -> dict[str, list[Any]]:
        path = self._folder / _FILES
        if not path.is_file():
            return {}
        try:
            return as_type(read_json(path), dict[str, list[int | str]])
        except ValueError as error:
            raise ValueError(
                f"{path} is not a list of known files that mlcalib kept ({error}); remove it."
            ) from error

    def _path(self, key: Key, suffix: str) -> Path:
        return self._folder / str(key["task"]) / (json_sha256(key) + suffix)
