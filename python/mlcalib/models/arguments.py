"""What blocks are called with besides the hidden states, for every sequence of a text."""

import copy
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mlcalib.models.base import Adapter
from mlcalib.models.device import moved
from mlcalib.models.running import BlockInputs

Place = int | str
"""Where an argument stands: its number after the hidden states, or its name."""


class Arguments:
    """The other arguments of all blocks, for sequences of one length.

    Most of them, such as masks and positions, are the same for every sequence: they are kept once.
    What depends on a sequence's tokens is kept for each (in memory), as is what one block makes for
    a later one.
    """

    def __init__(self, adapter: Adapter, device_of: Callable[[str], torch.device]) -> None:
        """Start empty.

        Args:
            adapter: the model's family.
            device_of: says where a block runs.
        """
        self._adapter = adapter
        self._device_of = device_of
        self._shared: dict[str, BlockInputs] = {}
        # Sequence → block → what differs from the shared ones.
        self._own: dict[Hashable, dict[str, dict[Place, Any]]] = {}
        self._handed: dict[Hashable, dict[Place, Any]] = {}

    def catch(self, key: Hashable, inputs: dict[str, BlockInputs]) -> None:
        """Keep what blocks are called with for a sequence, as ``running.embed`` returns it."""
        if not self._shared:
            self._shared = {name: each.to(self._device_of(name)) for name, each in inputs.items()}
            return
        equal = _Equal()
        own: dict[str, dict[Place, Any]] = {}
        for name, each in inputs.items():
            shared = self._shared[name].places
            found = {
                place: moved(value, self._device_of(name))
                for place, value in each.places.items()
                if not equal(value, shared.get(place))
            }
            if found:
                own[name] = found
        if own:
            self._own[key] = own

    def of(self, block_name: str, key: Hashable, *, keeps: bool = False) -> BlockInputs:
        """Return the other arguments of a block for a sequence.

        Args:
            block_name: of the block in the model.
            key: of the sequence.
            keeps: what blocks fill for later ones is to stay as it is: the block runs once more.
        """
        shared = self._shared[block_name]
        places = shared.places
        changed = dict(self._own.get(key, {}).get(block_name, {}))
        handed = self._handed.setdefault(key, {})
        for place in self._adapter.filled:
            if place in places:
                filled = handed.setdefault(place, copy.deepcopy(places[place]))
                changed[place] = copy.deepcopy(filled) if keeps else filled
        for place in self._adapter.handed_over:
            if place in handed and place in places:
                changed[place] = moved(handed[place], self._device_of(block_name))
        if not changed:
            return shared
        args = tuple(changed.get(place, value) for place, value in enumerate(shared.args))
        kwargs = {name: changed.get(name, value) for name, value in shared.kwargs.items()}
        return replace(shared, args=args, kwargs=kwargs)

    def hand_over(self, key: Hashable, output: Any) -> None:
        """Keep what a block returned beside the hidden states, where the next one reads it."""
        if not isinstance(output, tuple | list):
            return
        for place, index in self._adapter.handed_over.items():
            self._handed.setdefault(key, {})[place] = output[index]

    def handed(self, key: Hashable) -> dict[Place, Any]:
        """Return what blocks have made so far for later ones, in containers of its own."""
        found: dict[Place, Any] = tree_map(lambda each: each, self._handed.get(key, {}))
        return found

    def set_handed(self, key: Hashable, handed: dict[Place, Any]) -> None:
        """Go back to what ``handed`` returned."""
        self._handed[key] = handed


class _Equal:
    """Compares arguments; a pair of tensors that many blocks share is compared once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, one: Any, other: Any) -> bool:
        if one is other:
            return True
        (mine, form), (theirs, like) = tree_flatten(one), tree_flatten(other)
        return form == like and all(map(self._leaf, mine, theirs))

    def _leaf(self, one: Any, other: Any) -> bool:
        if not isinstance(one, Tensor):
            return isinstance(one, type(other))
        pair = (id(one), id(other))
        if pair not in self._known:
            self._known[pair] = (
                isinstance(other, Tensor)
                and one.shape == other.shape
                and torch.equal(one.to(other.device), other)
            )
        return self._known[pair]
