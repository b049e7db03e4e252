"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import FileLock, Timeout


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path to write a file at, which becomes ``path`` on leaving the block, all at once.

    An exception inside the block removes it and leaves what was at ``path``. The content is synced
    to disk before the rename.

    Raises:
        OSError: ``path`` cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Give a binary file to write, likewise."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[TextIO]:
    """Give a UTF-8 text file to write, which becomes ``path`` as with ``atomic_path``.

    Raises:
        OSError: ``path`` cannot be written.
    """
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield file
        file.flush()


def write_json_lines(records: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write records as JSON, a line each, all of them or nothing.

    Raises:
        OSError: ``path`` cannot be written.
        ValueError: a number that JSON lacks (NaN, infinity).
    """
    lines = [json.dumps(each, ensure_ascii=False, allow_nan=False) for each in records]
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines))


def check_output(out: str | Path) -> None:
    """Make sure, at the start of a run, that its result can be written at the end.

    Args:
        out: the folder to be written; it must not exist, or be an empty folder.

    Raises:
        FileExistsError: something is there.
        OSError: the folder cannot be made there (PermissionError, NotADirectoryError, …).
    """
    out = Path(out).resolve()
    if out.is_dir() and not any(out.iterdir()):
        parent = out.parent
    elif os.path.lexists(out):
        raise FileExistsError(f"{out} exists and is not empty; give another path or remove it")
    else:
        parent = next(parent for parent in out.parents if os.path.lexists(parent))
    probe = _partial(parent / out.name)
    if probe.exists():
        raise FileExistsError(f"{probe} is there: another run writes it, or was killed; remove it")
    try:  # Permission bits do not tell about read-only file systems or root: try it.
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        reason = f"cannot write {out}: {parent}: {error.strerror}; give another path"
        raise OSError(error.errno, reason) from error


@contextlib.contextmanager
def atomic_folder(out: str | Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``out`` on leaving the block, all at once.

    The folder is a sibling of ``out``, named ``.NAME.partial-PID``. An exception inside the block
    removes it, and no trace remains. Files are synced to disk before the rename.

    Args:
        out: the folder to be written; missing parents are made.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written.
    """
    check_output(out)
    out = Path(out).resolve()
    made = [parent for parent in out.parents if not parent.exists()]
    partial = _partial(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        partial.rename(out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # Another run may have written beside us.
                parent.rmdir()
        raise


def remove_partial(out: Path) -> None:
    """Remove what killed processes left of ``atomic_folder(out)``; call it inside ``locked``."""
    for folder in out.parent.glob(f".{out.name}.partial-*"):
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from entering here with it.

    Raises:
        BlockingIOError: another process is inside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        reason = f"another process is writing {folder}; wait for it, or give another --out"
        raise BlockingIOError(errno.EWOULDBLOCK, reason) from error
    try:
        yield
    finally:
        lock.release()


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial-{os.getpid()}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
