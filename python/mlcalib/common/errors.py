"""Errors that say where."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not in its stub

_SHOWN = 200


class CannotReadError(ValueError):
    """Files that are whole, as far as can be told, but of a kind that mlcalib does not read."""


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put ``where`` (a layer, a language) in front of the message of an error raised inside.

    Raises:
        ValueError, NotImplementedError, torch.linalg.LinAlgError: the same error, with its place.
    """
    try:
        yield
    except (ValueError, NotImplementedError, LinAlgError) as error:
        raise type(error)(f"{where}: {error}") from error


def printable(text: str) -> str:
    """Return a text from a file as a message can show it: at most 200 characters, and encodable.

    JSON can escape one half of a surrogate pair, which no terminal and no file takes.
    """
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")
