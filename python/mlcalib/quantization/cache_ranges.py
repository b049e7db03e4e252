"""Ranges of keys and values, as attention puts them into its cache: after positions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from mlcalib.models.kv_cache import before_cache, cache_argument
from mlcalib.quantization.input_bounds import bound_of, share_clipped
from mlcalib.statistics import StatisticSet

_KINDS = ("range", "histogram")


class CacheRanges:
    """The keys and values of every language in the attention modules of a block."""

    def __init__(self, block_name: str, block: nn.Module) -> None:
        """Find the attention modules; nothing is seen yet."""
        self._modules = {
            f"{block_name}.{path}": module
            for path, module in block.named_modules()
            if caches(module)
        }
        self._seen: dict[str, dict[str, dict[str, StatisticSet]]] = {
            name: {"k": {}, "v": {}} for name in self._modules
        }

    @contextmanager
    def watching(self, language: str) -> Iterator[None]:
        """See what the block's attention would put into its cache, of text in a language."""
        handles = [
            before_cache(module, partial(_seen_as, language, self._seen[name]))
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def describe(self, clip: float) -> dict[str, Any]:
        """Return attention module → ``k`` and ``v`` → what is recorded of them; JSON types.

        That is ``bound``, the largest magnitude that is held, and by language the ``range`` and the
        share of values outside of the bound, at most (``clipped``).

        Args:
            clip: the share of each language's values that may lie outside.
        """
        return {
            name: {
                kind: _described(by_language, bound_of(by_language, clip))
                for kind, by_language in kinds.items()
            }
            for name, kinds in self._seen.items()
        }


def caches(module: nn.Module) -> bool:
    """Return whether a module is an attention that puts keys and values into a cache."""
    return cache_argument(module) is not None


def _seen_as(
    language: str, seen: Mapping[str, dict[str, StatisticSet]], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Add keys and values [batch, heads, tokens, channels of a head] to those of a language."""
    for kind, x in (("k", keys), ("v", values)):
        rows = x.transpose(1, 2).flatten(2).flatten(0, 1)
        if language not in seen[kind]:
            seen[kind][language] = StatisticSet(_KINDS, rows.shape[1])
        seen[kind][language].update(rows)
    return keys, values


def _described(by_language: Mapping[str, StatisticSet], bound: float) -> dict[str, Any]:
    states = {language: each.view("range") for language, each in by_language.items()}
    return {
        "bound": bound,
        "range": {
            language: [float(state["low"].min()), float(state["high"].max())]
            for language, state in states.items()
        },
        "clipped": {language: share_clipped(each, bound) for language, each in by_language.items()},
    }
