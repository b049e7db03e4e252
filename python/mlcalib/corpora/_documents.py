"""Documents on their way from a corpus to a tokenizer, and the count of those that are left out."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Document = str | list[dict[str, Any]]
"""A text, or the messages of a conversation: ``{"role": …, "content": …}``."""

WINDOW = 1000

_EXAMPLE = 200  # characters that are shown of one


class Conversation(list[dict[str, Any]]):
    """The messages of a conversation, as a corpus gives them.

    Attributes:
        tools: the JSON schemas of the tools that the assistant was offered; None where none were.
        has_images: whether the contents of its messages are lists of parts, ``{"type": "text",
            "text": …}`` and ``{"type": "image", "path": …}``, and no texts.
    """

    def __init__(
        self,
        messages: Iterable[dict[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        has_images: bool = False,
    ) -> None:
        super().__init__(messages)
        self.tools = tools
        self.has_images = has_images


@dataclass
class Tally:
    """How many documents were read from a source, and how many of these were left out.

    Attributes:
        read: the documents read. A stream is shuffled within a window, so more are read than used.
        dropped: reason for leaving documents out → how many, e.g. ``blank documents`` → 3.
        noted: what else is remarkable → how many, e.g. ``files of the folder that are not read``.
        examples: what was left out or is remarkable → its first example.
        images: the folder that paths of images are relative to; None where conversations with
            images are left out.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict, compare=False)
    images: Path | None = field(default=None, compare=False)

    def drop(self, what: str, example: str) -> None:
        """Count one document, row or line that is left out."""
        self.dropped[what] += 1
        self.examples.setdefault(what, _shortened(example))

    def take(self, other: "Tally") -> None:
        """Count what another tally counts, in place of what was counted here."""
        self.read = other.read
        self.dropped, self.noted = Counter(other.dropped), Counter(other.noted)
        self.examples = dict(other.examples)

    def note(self, what: str, example: str, count: int = 1) -> None:
        """Count what is to be said of text that is not left out."""
        self.noted[what] += count
        self.examples.setdefault(what, example)


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one language, which are read when they are needed, and anew each time.

    Attributes:
        read: gives the documents, none of them blank, and counts in the tally what it reads and
            what it leaves out.
        origin: where the documents come from, for the record, in JSON types.
    """

    read: Callable[[Tally], Iterator[Document]]
    origin: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Document]:
        return self.read(Tally())


def left_out(read: int, dropped: Mapping[str, int], examples: Mapping[str, str]) -> str:
    """Return a tally in words, e.g. ``left out of 9 read: 3 blank documents (first: line 2)``.

    The arguments are the attributes of a ``Tally``. The result is "" if nothing was left out.
    """
    counts = ", ".join(
        f"{count:,} {what}" + (f" (first: {examples[what]})" if what in examples else "")
        for what, count in sorted(dropped.items())
    )
    return f"left out of {read:,} read: {counts}" if counts else ""


def notes(noted: Mapping[str, int], examples: Mapping[str, str]) -> list[str]:
    """Say what else a tally holds, e.g. ``2 files of the folder that are not read (a, b)``."""
    return [f"{count:,} {what} ({examples[what]})" for what, count in sorted(noted.items())]


def said_of(remarks: Iterable[tuple[str, str]]) -> list[str]:
    """Join pairs of language and remark: ``en, sw: …``, once for all languages of a remark."""
    languages: dict[str, list[str]] = {}
    for language, remark in remarks:
        languages.setdefault(remark, []).append(language)
    return [f"{', '.join(codes)}: {remark}" for remark, codes in languages.items()]


def shuffled(items: Sequence[T], seed: int, language: str) -> list[T]:
    """Return the items in a random order, which depends on the seed and the language."""
    draw = generator(seed, language)
    keys = [draw() for _ in items]
    return [items[index] for index in sorted(range(len(keys)), key=keys.__getitem__)]


def window_shuffled(items: Iterable[T], draw: Callable[[], float]) -> Iterator[T]:
    """Shuffle a stream: each item is drawn at random from a window of ``WINDOW`` items.

    Args:
        items: the stream, which is read ``WINDOW`` items ahead.
        draw: returns a random number in [0, 1).
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


def _shortened(example: str) -> str:
    text = " ".join(example.split())
    return text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]}…"
