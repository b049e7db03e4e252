"""Progress that stays readable: a bar in terminals and notebooks, now and then a line in logs."""

import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import std
from tqdm.auto import tqdm

if TYPE_CHECKING:
    Bar = std.tqdm[Any]

SECONDS = 30.0
"""Seconds between two lines of a log."""


class LogLines(std.tqdm):  # type: ignore[type-arg]
    """tqdm for logs: a line every ``SECONDS``, with what is left, and one at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """See ``tqdm``."""
        self._said, self._said_at = 0.0, time.monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, if it is time for one; see ``tqdm``."""
        if time.monotonic() - self._said_at >= SECONDS:
            self._say()

    def close(self) -> None:
        """Say what was done, if anything was; see ``tqdm``."""
        if not self.disable:
            if self.n > max(self.initial, self._said):
                self._say()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]

    def _say(self) -> None:
        self._said, self._said_at = self.n, time.monotonic()
        self.fp.write(self.line() + "\n")
        self.fp.flush()

    def line(self) -> str:
        """Return where it stands, how long it took and, about, what is left."""
        facts = self.format_dict
        done, total, spent = self.n, self.total, facts["elapsed"]
        what = f"{self.desc.rstrip(': ')}: " if self.desc else ""
        unit = "" if self.unit == "it" else f" {self.unit.strip().removesuffix('s')}"
        plural = "s" if unit and (total or done) != 1 else ""
        text = f"{what}{done}{f' of {total}' if total else ''}{unit}{plural}"
        if total:
            text += f" ({done / total:.0%})"
        text += f", {self.format_interval(spent)} spent"
        if total and self.initial < done < total:
            left = (total - done) * spent / (done - self.initial)
            text += f", about {self.format_interval(left)} left"
        return text + (f", {self.postfix}" if self.postfix else "")


def progress_bar(*args: Any, **options: Any) -> "Bar":
    """Return what shows progress on standard error; for arguments see ``tqdm``.

    A bar on a terminal or in a notebook. It would fill a file or the log of a batch system: there
    it is a line every half minute.
    """
    notebook = any(each.__module__ == "tqdm.notebook" for each in tqdm.__mro__)
    kind: type[Bar] = tqdm if notebook or sys.stderr.isatty() else LogLines
    return kind(*args, **options)
