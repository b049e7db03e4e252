"""Errors that say where."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not in its stub


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
