"""Documents on their way from a corpus to a tokenizer, and the count of those that are left out."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Conversation = list[dict[str, str]]  # messages: {"role": …, "content": …}
Document = str | Conversation

WINDOW = 1000


@dataclass
class Tally:
    """What was read of a source, and what of that was left out.

    Attributes:
        read: documents read; of a stream more than are used, for they are shuffled in a window.
        dropped: what was left out → how many, e.g. ``blank documents`` → 3.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents of one language, read as they are asked for, anew each time.

    Attributes:
        read: gives the documents, none blank, and counts in the tally what it reads and leaves out.
        origin: where they come from, for the record; JSON types.
    """

    read: Callable[[Tally], Iterator[Document]]
    origin: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Document]:
        return self.read(Tally())


def left_out(read: int, dropped: Mapping[str, int]) -> str:
    """Say what a tally counts, e.g. ``left out of 9 read: 3 blank documents``; empty if nothing."""
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(dropped.items()))
    return f"left out of {read:,} read: {counts}" if counts else ""


def shuffled(items: Sequence[T], seed: int, language: str) -> list[T]:
    """Return the items in the order that the seed gives this language."""
    draw = generator(seed, language)
    keys = [draw() for _ in items]
    return [items[index] for index in sorted(range(len(keys)), key=keys.__getitem__)]


def window_shuffled(items: Iterable[T], draw: Callable[[], float]) -> Iterator[T]:
    """Shuffle a stream: each item is drawn from the next ``WINDOW`` of them.

    Args:
        items: the stream; read ``WINDOW`` items ahead.
        draw: gives numbers in [0, 1).
    """
    window: list[T] = []
    for item in items:
        if len(window) < WINDOW:
            window.append(item)
            continue
        index = int(draw() * WINDOW)
        yield window[index]
        window[index] = item
    while window:
        index = int(draw() * len(window))
        window[index], window[-1] = window[-1], window[index]
        yield window.pop()


def generator(seed: int, language: str) -> Callable[[], float]:
    """Return what draws the order of a language's documents; the same in every Python."""
    # random() is the one draw that Python promises to keep the same from version to version.
    return random.Random(f"{seed} {language}").random
