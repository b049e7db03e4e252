"""Answers that changed from right to wrong, and from wrong to right."""

from collections.abc import Sequence
from typing import NamedTuple


class Flips(NamedTuple):
    """Answers that changed.

    Attributes:
        right_to_wrong: items that the float model had right, and the model has wrong.
        wrong_to_right: the reverse.
        n: items in all.
    """

    right_to_wrong: int
    wrong_to_right: int
    n: int


def flips(float_items: Sequence[float], model_items: Sequence[float]) -> Flips:
    """Count the answers of one task that changed; accuracy hides those that cancel.

    Args:
        float_items: of each item, 1 where the float model is right, else 0.
        model_items: likewise of the model, same items in the same order.

    Raises:
        ValueError: no items, other numbers of items, or values other than 0 and 1.
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
