"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that has no locks."""

_ALLOWED = (".parts", "lost+found")  # in an empty folder: what mount points have
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path to write a file at, which becomes ``path`` on leaving the block, all at once.

    An exception inside the block removes it and leaves what was at ``path``. The content is synced
    to disk before the rename.

    Raises:
        OSError: ``path`` cannot be written.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_file(path: str | Path) -> None:
    """Make sure, at the start of a run, that ``atomic_path(path)`` can write at the end.

    Raises:
        OSError: it cannot (IsADirectoryError, PermissionError, …).
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder; give the path of a file")
    probe = path.with_name(f".{path.name}.probe-{os.getpid()}")
    try:
        with atomic_bytes(probe) as file:
            file.write(b"probe")
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror}; give another path"
        raise OSError(error.errno, reason) from error
    probe.unlink()


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


def full_path(path: str | Path) -> Path:
    """Return a path from the root, without links, of one that may begin with ``~``.

    No shell writes a home directory for the ``~`` in ``--out=~/x``.
    """
    return Path(path).expanduser().resolve()


def check_output(out: str | Path) -> None:
    """Make sure, at the start of a run, that its result can be written at the end.

    What the end does is rehearsed: a folder is made where the result will be, with a file in it,
    and renamed.

    Args:
        out: the folder to be written; it must not exist, or be an empty folder.

    Raises:
        FileExistsError: something is there.
        OSError: the folder cannot be made there (PermissionError, NotADirectoryError, …), or
            nothing can be renamed there.
    """
    out = full_path(out)
    if out.is_dir() and not any(file.name not in _ALLOWED for file in out.iterdir()):
        parent = out if os.path.ismount(out) else out.parent
    elif os.path.lexists(out):
        raise FileExistsError(f"{out} exists and is not empty; give another path or remove it")
    else:
        parent = next(parent for parent in out.parents if os.path.lexists(parent))
    probe = parent / _beside(out, _partial_name()).name
    if probe.exists():
        raise FileExistsError(f"{probe} is there: another run writes it, or was killed; remove it")
    renamed = probe.with_name(f"{probe.name}-renamed")
    try:  # Permission bits do not tell about read-only file systems or root: try it.
        probe.mkdir()
        (probe / "file").write_bytes(b"probe")
        probe.rename(renamed)
    except OSError as error:
        reason = f"cannot write {out}: {parent}: {error.strerror}; give another path"
        raise OSError(error.errno, reason) from error
    finally:
        for made in (probe, renamed):
            shutil.rmtree(made, ignore_errors=True)


def check_folder(folder: str | Path) -> None:
    """Make sure likewise that files can be added to a folder, which may be there or not."""
    check_output(full_path(folder) / ".new")


def parts_folder(out: str | Path) -> Path:
    """Return where an unfinished run keeps what is done: beside ``out``, in ``.NAME.parts``.

    Where ``out`` is a mount point, what is beside it is on another file system, so that it is
    ``.parts`` inside.
    """
    return _beside(full_path(out), "parts")


@contextlib.contextmanager
def atomic_folder(out: str | Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``out`` on leaving the block, all at once.

    The folder is a sibling of ``out``, named ``.NAME.partial-PID``. An exception inside the block
    removes it, and no trace remains. Files are synced to disk before the rename. Where ``out`` is a
    mount point, which nothing can replace, the folder is inside of it, and what is in it is moved
    up, ``mlcalib.json`` last.

    Args:
        out: the folder to be written; missing parents are made.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        OSError: ``out`` cannot be written. If nothing but the last step failed, what was written is
            kept and the message says where.
    """
    check_output(out)
    out = full_path(out)
    made = [parent for parent in out.parents if not parent.exists()]
    partial = _beside(out, _partial_name())
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # Another run may have written beside us.
                parent.rmdir()
        raise
    try:
        if partial.parent == out:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "mlcalib.json"):
                path.rename(out / path.name)
            partial.rmdir()
        else:
            partial.rename(out)
    except OSError as error:
        reason = f"{partial} is whole, but cannot be renamed to {out} ({error.strerror}); move it"
        raise OSError(error.errno, reason) from error
    _sync(partial.parent)


def remove_partial(out: Path) -> None:
    """Remove what killed processes left of ``atomic_folder(out)``; call it inside ``locked``."""
    begun = _beside(out, "partial-")
    beside = begun.parent.iterdir() if begun.parent.is_dir() else ()
    for folder in [path for path in beside if path.name.startswith(begun.name)]:
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from entering here with it.

    Where a file system has no locks, a file that is there while a process is inside stands in for
    one, and a warning says so.

    Raises:
        BlockingIOError: another process is inside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = FileLock(folder / ".lock", timeout=0)
    try:
        try:
            lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
                raise
            marker = folder / ".lock-file"
            _log.warning(
                "%s is on a file system without locks (%s): %s stands in for one; remove it if a "
                "run was killed and none goes on",
                *(folder, error.strerror, marker),
            )
            lock = SoftFileLock(marker, timeout=0)
            lock.acquire()
    except Timeout as error:
        reason = f"another process is writing {folder}; wait for it, or give another --out"
        raise BlockingIOError(errno.EWOULDBLOCK, reason) from error
    try:
        yield
    finally:
        lock.release()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_partial_name()}")


def _partial_name() -> str:
    return f"partial-{os.getpid()}"


def _beside(out: Path, kind: str) -> Path:
    """Return a hidden path of a kind beside a folder, or inside of a mount point."""
    return out / f".{kind}" if os.path.ismount(out) else out.with_name(f".{out.name}.{kind}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems sync files only
        if not (path.is_dir() and error.errno in (errno.EINVAL, *NO_LOCKS)):
            raise
    finally:
        os.close(descriptor)
