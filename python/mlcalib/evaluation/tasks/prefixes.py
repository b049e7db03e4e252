"""Groups token sequences that begin alike, so that a model reads their common part only once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]

MIN_SHARE = 0.3
"""The share of a sequence that it must have in common with a group to join it."""


@dataclass(frozen=True)
class Group:
    """Sequences with one beginning.

    Attributes:
        prefix: the tokens that all begin with, at least one. Where the group is a single sequence,
            all of it.
        rests: of each sequence what follows, at least one token; none where the group is a single
            sequence.
    """

    prefix: Tokens
    rests: tuple[Tokens, ...]

    @property
    def sequences(self) -> list[Tokens]:
        """The sequences."""
        return [self.prefix + rest for rest in self.rests] or [self.prefix]


def group(sequences: Sequence[Tokens]) -> list[Group]:
    """Group distinct sequences so that few tokens are read twice. Long beginnings come first.

    Sequences are sorted, so that those that begin alike are neighbours. A sequence joins the group
    of its neighbour if this saves tokens, and if it shares so much with it that the following ones
    can still share a long beginning.
    """
    groups = []
    members: list[Tokens] = []
    shared = 0
    for sequence in sorted(set(sequences)):
        # A sequence that begins another is not extended: its own last logits are needed.
        common = min(_common(members[-1], sequence), len(sequence) - 1) if members else 0
        common = min(shared, common, len(members[-1]) - 1) if members else 0
        saves = len(members) * common > (len(members) - 1) * shared
        if members and saves and common >= MIN_SHARE * len(sequence):
            members.append(sequence)
            shared = common
            continue
        if members:
            groups.append(_make(members, shared))
        members, shared = [sequence], len(sequence)
    if members:
        groups.append(_make(members, shared))
    return sorted(groups, key=lambda each: (-len(each.prefix), each.prefix))


def batches(groups: Sequence[Group], tokens: int) -> Iterator[list[Group]]:
    """Split groups, in order, into batches of about ``tokens`` tokens after padding."""
    batch: list[Group] = []
    for each in groups:
        if batch and padded_tokens([*batch, each]) > tokens:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def padded_tokens(batch: Sequence[Group]) -> int:
    """Return the tokens that a batch has after padding."""
    rests = [rest for each in batch for rest in each.rests]
    longest = max((len(each.prefix) for each in batch), default=0)
    return longest * len(batch) + max(map(len, rests), default=0) * len(rests)


def _make(members: Sequence[Tokens], shared: int) -> Group:
    if len(members) == 1:
        return Group(members[0], ())
    return Group(members[0][:shared], tuple(member[shared:] for member in members))


def _common(a: Tokens, b: Tokens) -> int:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
