"""Keys and values on their way into the cache of an attention."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_ARGUMENTS = ("cache", "past_key_values", "past_key_value")  # in transformers 5.23, and before
_LARGEST = 448.0

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes keys and values [batch, heads, tokens, channels], and returns what is cached instead."""


def cache_argument(module: nn.Module) -> str | None:
    """Return what the forward of an attention calls its cache; None of other modules.

    Attentions are those of ``is_cached_attention_module`` in compressed-tensors 0.20, which knows
    other names of the cache, but for latent attention (``kv_b_proj``), of which vLLM caches
    something else.
    """
    made = hasattr(module, "qkv_proj") or (hasattr(module, "k_proj") and hasattr(module, "v_proj"))
    if not (made and "attention" in type(module).__name__.lower()):
        return None
    known = inspect.signature(module.forward).parameters
    return next((name for name in _ARGUMENTS if name in known), None)


def before_cache(module: nn.Module, update: Update) -> Any:
    """Let an attention put into its cache, and go on with, what ``update`` makes of it.

    Returns:
        A handle, whose ``remove`` ends it.
    """
    name = str(cache_argument(module))
    return module.register_forward_pre_hook(partial(_replaced, name, update), with_kwargs=True)


def round_cache(model: nn.Module, scales: Mapping[str, tuple[float, float]]) -> None:
    """Let a model round keys and values to FP8, as a reader with a cache in 8 bits does.

    Args:
        model: its attentions are changed; without a cache too, so that evaluations show it.
        scales: attention module → the scales of keys and of values.

    Raises:
        NotImplementedError: the model has no such attention.
    """
    for name, own in scales.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if module is None or cache_argument(module) is None:
            raise NotImplementedError(
                f"{type(model).__name__} has no attention {name} of which keys and values could be "
                "rounded as the checkpoint says."
            )
        before_cache(module, partial(_rounded, own))


def _rounded(scales: tuple[float, float], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return _to_fp8(keys, scales[0]), _to_fp8(values, scales[1])


def _to_fp8(x: Tensor, scale: float) -> Tensor:
    numbers = (x.float() / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return (numbers.float() * scale).to(x.dtype)


def _replaced(
    name: str, update: Update, _: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {name: _Cache(update, kwargs.get(name))}


class _Cache:
    """Stands before a cache, or for none."""

    def __init__(self, update: Update, cache: Any) -> None:
        self._update, self._cache = update, cache

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the keys and values that attention goes on with."""
        keys, values = self._update(keys, values)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
