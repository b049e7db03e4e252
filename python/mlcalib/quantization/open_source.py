"""From what a user names, a model as a pass takes it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mlcalib.common import compat
from mlcalib.common.hub import model_folder
from mlcalib.models import adapter_for, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import (
    architecture,
    check_dtype,
    check_source,
    load_model,
    load_tokenizer,
    shared_copy,
    skeleton,
)
from mlcalib.models.own_code import load_with_code
from mlcalib.quantization.source import Source
from mlcalib.quantization.streamed_source import StreamedSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_source(model: "str | Path | PreTrainedModel", dtype: str) -> Source:
    """Open a model, to be streamed where its files allow that.

    Args:
        model: a folder with safetensors, a hub name (whose files are fetched), a GGUF file, or a
            transformers model, which is not changed.
        dtype: ``auto`` (as stored; float32 for GGUF), ``float32``, ``bfloat16`` or ``float16``; of
            a model that is read here.

    Returns:
        The model, without weights in memory unless they were there; ``ready`` comes before a pass.

    Raises:
        FileNotFoundError, ValueError, NotImplementedError: see ``StreamedSource`` and
            ``GgufSource``.
    """
    if not isinstance(model, str | Path):
        return live_source(model)
    name = str(model)
    check_source(name)
    if name.endswith(".gguf"):
        return GgufSource(name, dtype)
    return StreamedSource(name, model_folder(name), dtype)


def open_with_tokenizer(
    model: "str | Path | PreTrainedModel",
    dtype: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    trust_remote_code: bool,
) -> "tuple[Source, PreTrainedTokenizerBase]":
    """Open a model and its tokenizer.

    Args:
        model: see ``open_source``.
        dtype: see ``open_source``.
        tokenizer: of a model in memory, or one in place of the model's own.
        trust_remote_code: whether code beside the weights may run; see ``load_with_code``.

    Raises:
        FileNotFoundError, ValueError, NotImplementedError: see ``open_source``; a model in memory
            without a tokenizer.
    """
    if not isinstance(model, str | Path):
        if tokenizer is None:
            raise ValueError("A model was given without its tokenizer; pass tokenizer=.")
        return live_source(model), tokenizer
    if not trust_remote_code:
        source = open_source(model, dtype)
        return source, tokenizer or load_tokenizer(source.name)
    loaded, tokenizer = load_with_code(model, dtype, tokenizer)
    return replace(live_source(loaded), folder=model_folder(str(model))), tokenizer


def live_source(model: "PreTrainedModel") -> Source:
    """Open a transformers model; its parameters are shared, and it is not changed.

    Raises:
        NotImplementedError: a model that cannot be looked at (see ``discover``); weights that
            accelerate keeps elsewhere than where they are used.
    """
    if compat.is_offloaded(model):
        raise NotImplementedError(
            "accelerate keeps weights of this model in another memory or on disk, and brings them "
            "when they are used (device_map with cpu or disk beside a GPU). Give the folder in "
            "place of the model: its blocks are streamed."
        )
    own = shared_copy(model).eval()
    adapter = adapter_for(own)
    unfuse(own, adapter)
    name = model.config.name_or_path or type(model).__name__
    return Source(name, own, adapter, own.dtype)


class GgufSource(Source):
    """A GGUF file, whose weights are loaded when all that is asked for has been checked."""

    def __init__(self, name: str, dtype: str) -> None:
        """Make the modules without weights, from the config alone.

        Args:
            name: of the file.
            dtype: ``auto`` (float32), ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            FileNotFoundError, ValueError, NotImplementedError: see ``load_model``; an architecture
                without an adapter.
        """
        check_source(name)
        check_dtype(dtype)
        self._asked = dtype
        adapter = find_adapter(architecture(name))
        stored = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        model = skeleton(name, stored)
        unfuse(model, adapter)
        super().__init__(name, model, adapter, stored)

    def ready(self) -> Source:
        """See ``Source.ready``: a GGUF file is loaded whole."""
        return self.loaded()

    def loaded(self) -> Source:
        """See ``Source.loaded``."""
        model = load_model(self.name, self._asked)
        unfuse(model, self.adapter)
        return Source(self.name, model, self.adapter, model.dtype)
