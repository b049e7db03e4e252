"""Results on disk, so that nothing is measured twice and an interrupted evaluation resumes.

A key is a JSON object that names all that decides a result: the task, the model's fingerprint, the
items', the options, the versions. Its sha256 is the name of the file, ``DIR/TASK/SHA256.json``,
which holds the key too, for people to read. Files are written whole or not at all, so a run that is
killed at any moment leaves a cache that is right, and several runs can share one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mlcalib.common.files import atomic_bytes, atomic_file
from mlcalib.common.sha256 import file_sha256, json_sha256

Key = Mapping[str, Any]
"""JSON types; ``task``, a string, is among them."""

_FILES = "files.json"


class Cache:
    """A folder of results.

    Args:
        folder: made when something is put there.

    Raises:
        NotADirectoryError: there is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; give a folder for the cache (--cache).")

    def get(self, key: Key) -> Any | None:
        """Return what was put under a key, or None.

        Raises:
            ValueError: the file was damaged; names it.
        """
        path = self._path(key, ".json")
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] != key:
                raise ValueError("its key is another one")
            return content["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a result that mlcalib kept ({error}); remove it."
            ) from error

    def put(self, key: Key, value: Any) -> None:
        """Keep a value (JSON types, not None, finite numbers) under a key."""
        with atomic_file(self._path(key, ".json")) as file:
            json.dump({"key": key, "value": value}, file, ensure_ascii=False, allow_nan=False)

    def has_tensor(self, key: Key) -> bool:
        """Return whether a tensor was put under a key."""
        return self._path(key, ".safetensors").is_file()

    def get_tensor(self, key: Key) -> Tensor:
        """Return the tensor that was put under a key.

        Raises:
            OSError, safetensors.SafetensorError: it is not there, or was damaged.
        """
        from safetensors.torch import load_file

        return load_file(self._path(key, ".safetensors"))["tensor"]

    def put_tensor(self, key: Key, tensor: Tensor) -> None:
        """Keep a tensor under a key; it does not get in the way of a value under the same key."""
        from safetensors.torch import save

        content = save({"tensor": tensor.contiguous()}, {"key": json.dumps(key)})
        with atomic_bytes(self._path(key, ".safetensors")) as file:
            file.write(content)

    def drop(self, task: str) -> None:
        """Remove all that was put under a task; nothing else gets lost."""
        shutil.rmtree(self._folder / task, ignore_errors=True)

    def sha256(self, path: str | Path) -> str:
        """Return the sha256 of a file as hex; a file is read again only after it has changed.

        Whether it has is judged by its size and the times of its last change and last move
        (st_mtime_ns, st_ctime_ns).
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
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _path(self, key: Key, suffix: str) -> Path:
        return self._folder / str(key["task"]) / (json_sha256(key) + suffix)
