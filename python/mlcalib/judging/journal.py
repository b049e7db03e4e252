"""Results that are on disk as soon as they are there, so that what was killed goes on."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from mlcalib.common.checked import as_type
from mlcalib.common.files import NO_LOCKS
from mlcalib.common.json_text import loads

_log = logging.getLogger(__name__)

Line = TypeVar("Line")


class Journal(Generic[Line]):
    """A JSONL file that grows by whole lines, each with the fingerprint of what the run is.

    A last line that a kill cut short is removed on opening. While it is open it is locked, so that
    no second run adds the same lines. Use it in a ``with`` block.

    Args:
        path: the file; made if it is not there.
        fingerprint: of all that a line's content depends on.
        what: what the lines hold, for messages.
        kind: a dataclass, of the fields that a line has at least.

    Attributes:
        rows: of each line that is there these fields. The others stay on disk, so that a file takes
            about its size in memory.

    Raises:
        BlockingIOError: another run has it open.
        ValueError: the file is of another run, or not such a file.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path, fingerprint: str, what: str, kind: type[Line]) -> None:
        self._path = Path(path).expanduser()
        self._fingerprint = fingerprint
        self._what = what
        self._kind = kind
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._made = not self._path.exists()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(self._path, flags, 0o666)
        try:
            self._lock()  # before reading, which cuts off what another run is writing
            self.rows: list[Line] = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line; it is synced to disk when this returns."""
        content = {**row, "fingerprint": self._fingerprint}
        line = json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        while line:  # one write, but for a full disk, which raises next
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self.rows.append(as_type(dict(row), self._kind))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if self._made and not self.rows:
            self._path.unlink()

    def _lock(self) -> None:
        """Lock the file until it is closed; where a file system has no locks, warn."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                reason = f"another run is writing {self._path}; wait for it, or give another --out"
                raise BlockingIOError(errno.EWOULDBLOCK, reason) from error
            if error.errno not in NO_LOCKS:
                raise
            _log.warning(
                "%s is on a file system without locks (%s): start no second run on it",
                *(self._path, error.strerror),
            )

    def _read(self) -> list[Line]:
        rows = []
        end = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    rows.append(self._row(line, number))
                    end += len(line)
                    continue
                if not rows:
                    self._row(line, number)  # not ours: nothing of it is cut
                said = "%s: the last line was cut short by a kill; it is done again"
                _log.warning(said, self._path)
                os.truncate(self._path, end)
        return rows

    def _row(self, line: bytes, number: int) -> Line:
        try:
            row = loads(line)
            theirs = row.pop("fingerprint")
            if theirs == self._fingerprint:
                return as_type(row, self._kind)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self._path}, line {number}, is not a line of {self._what} that mlcalib wrote "
                f"({type(error).__name__}: {error}); give another --out, or remove the file."
            ) from error
        raise ValueError(
            f"{self._path} holds {self._what} made with other texts, models or options (line "
            f"{number}); give the same ones to go on with it, or another --out."
        )
