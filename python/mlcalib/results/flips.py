"""Answers that changed from right to wrong, and from wrong to right."""

from collections.abc import Sequence
from typing import NamedTuple


class Flips(NamedTuple):
    """How many answers of a task changed.

    Attributes:
        right_to_wrong: items that the float model answered rightly, and the other model wrongly.
        wrong_to_right: items for which it is the other way round.
        n: all items.
    """

    right_to_wrong: int
    wrong_to_right: int
    n: int


def flips(float_items: Sequence[float], model_items: Sequence[float]) -> Flips:
    """Count the answers of one task that changed.

    A change of accuracy does not show the changes that cancel.

    Args:
        float_items: for each item 1 if the float model is right, and 0 if it is wrong.
        model_items: these numbers for the other model, for the same items in the same order.

    Raises:
        ValueError: there are no items, the two have different numbers of items, or a value is
            neither 0 nor 1.
    """
    if len(float_items) != len(model_items) or not float_items:
        raise ValueError(
            f"There are {len(float_items)} items of the float model and {len(model_items)} of the "
            "other; give one or more, the same of both."
        )
    if foreign := {*float_items, *model_items} - {0, 1}:
        raise ValueError(f"An item is {foreign.pop()!r}; expected 1 (right) or 0 (wrong).")
    pairs = list(zip(float_items, model_items, strict=True))
    return Flips(pairs.count((1, 0)), pairs.count((0, 1)), len(pairs))
