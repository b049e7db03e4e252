"""Commands that torchrun can start as several processes."""

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any


def over_ranks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the processes that torchrun started with this one, as ``ranks``.

    Rank 0 alone prints, warns and shows progress; errors are printed by whoever has them.
    """

    @functools.wraps(command)
    def joined(*given: Any, **named: Any) -> None:
        from mlcalib.common.torchrun import joined_ranks

        with joined_ranks() as ranks:
            if not ranks.writes:
                logging.getLogger().setLevel(logging.ERROR)
            command(*given, ranks=ranks, **named)

    signature = inspect.signature(command)
    kept = [each for each in signature.parameters.values() if each.name != "ranks"]
    joined.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    del joined.__annotations__["ranks"]
    return joined


def alone(command: Callable[..., None]) -> Callable[..., None]:
    """Refuse a command to several processes, each of which would do all of it."""

    @functools.wraps(command)
    def checked(*given: Any, **named: Any) -> None:
        if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise ValueError(
                f"mlcalib {command.__name__.replace('_', '-')} is done by one process, but "
                f"torchrun started {count}, which would all do the same; start it without "
                "torchrun. quantize, study and evaluate are shared."
            )
        command(*given, **named)

    return checked
