"""A model in safetensors files, of which one block at a time is in memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mlcalib.checkpoints.check.tensors import shapes_of
from mlcalib.checkpoints.config_check import check_config
from mlcalib.checkpoints.expected import check_expected, expected_shapes, own_head
from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common import compat
from mlcalib.common.errors import CannotReadError
from mlcalib.common.safetensors_read import ADAPTER, read_json, validate_folder
from mlcalib.common.safetensors_write import Piece, tensor_piece
from mlcalib.models import adapter_for
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import skeleton, stored_dtype
from mlcalib.quantization.source import Source, copied

_log = logging.getLogger(__name__)


class StreamedSource(Source):
    """A model in safetensors files, of which one block at a time is in memory.

    Tensors in the files that the model class has no place for, such as layers for multi-token
    prediction, are ``extra``: they go into the checkpoint as they are, and are named in the log.
    """

    def __init__(self, name: str, folder: Path, dtype: str) -> None:
        """Make the modules without weights, and compare them with what the files hold.

        Args:
            name: as it was given.
            folder: with safetensors.
            dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            ValueError: a damaged checkpoint; tensors that are missing, or that have other shapes
                than the model's; codes that cannot be understood.
            NotImplementedError: an architecture without an adapter; codes of another kind.
        """
        _check_config(folder)
        stored = stored_dtype(folder, dtype)
        self._weights = StoredWeights(folder, stored)
        model = skeleton(str(folder), stored)
        compat.fill_buffers(model)
        adapter = adapter_for(model)
        if (pair := own_head(self._weights, model, adapter)) is not None:
            _log.warning(
                "%s: the config ties %s to %s, but the files hold two different tensors; both are "
                "kept, and the output's config does not tie them",
                folder,
                *pair,
            )
            model = skeleton(str(folder), stored, untied=True)
            compat.fill_buffers(model)
        unfuse(model, adapter)
        compat.forget_quantizer(model)
        model.config.use_cache = False
        model.config.name_or_path = name
        if model.can_generate() and (folder / "generation_config.json").is_file():
            from transformers import GenerationConfig

            model.generation_config = GenerationConfig.from_pretrained(folder)
        super().__init__(name, model.eval(), adapter, model.dtype, folder)
        self._check_tensors()

    def _check_tensors(self) -> None:
        """Compare the names, shapes and dtypes of the tensors with the model's."""
        folder, weights = self._weights.folder, self._weights
        self._likes = self.model.state_dict()
        self._origins = self.adapter.origins(self._likes.keys(), weights.likes())
        expected = expected_shapes(self.model, self.adapter)
        there = {name: weights.shape(name) for name in weights.names}
        for name, (_, like) in self._origins.items():  # as they become, of whatever the files hold
            saved = self.adapter.saved(name)
            if there.get(saved, ()) is not None:  # else its codes do not tell
                there[saved] = tuple(like.shape)
        check_expected(str(folder), expected, there, self.model, self.adapter)
        known = {each for origin in self._origins.values() for each in origin.names}
        floating = {name for name, like in self._likes.items() if like.is_floating_point()}
        weights.check_dtypes(
            dict.fromkeys(
                each
                for name, origin in self._origins.items()
                if name in floating
                for each in origin.names
            )
        )
        self.extra = [name for name in self._weights.names if name not in known]
        named = [name for name in self.extra if not name.endswith(".inv_freq")]
        if named:
            _log.warning(
                "%s holds %d tensors that %s has no place for, such as %s; they are copied as "
                "they are, and not quantized",
                folder,
                len(named),
                type(self.model).__name__,
                named[0],
            )
        if unread := sorted({*folder.glob("*.safetensors")} - self._weights.files):
            names = ", ".join(file.name for file in unread)
            _log.warning("%s: no index names %s; not read, and not copied", folder, names)
        if (folder / ADAPTER).is_file():
            _log.warning(
                "%s holds an adapter (LoRA) beside the model; it is neither applied nor copied. "
                "Merge it into the model first (merge_and_unload of peft) if it belongs to it",
                folder,
            )

    @property
    def resident(self) -> int:
        """See ``Source.resident``: none."""
        return 0

    def tied(self) -> set[str]:
        """See ``Source.tied``: as the config says."""
        return set(compat.tied_weights(self.model))

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """See ``Source.embedding``; the output embeddings are left out."""
        head = self.adapter.language_model(self.model).get_output_embeddings()
        with self._filled({n: module for n, module in self._outside() if module is not head}):
            yield

    @contextmanager
    def outer(self) -> Iterator[None]:
        """See ``Source.outer``."""
        with self._filled(dict(self._outside())):
            yield

    def _outside(self) -> list[tuple[str, nn.Module]]:
        modules = self.model.named_modules()
        return [(name, module) for name, module in modules if not self._in_block(f"{name}.")]

    @contextmanager
    def block(self, name: str) -> Iterator[nn.Module]:
        """See ``Source.block``."""
        module = copied(self.model.get_submodule(name))
        inside = {f"{name}.{each}" if each else name: m for each, m in module.named_modules()}
        with self._filled(inside):
            yield module

    def tensor(self, name: str) -> Tensor:
        """See ``Source.tensor``."""
        return self._read([name])[name]

    def loaded(self) -> Source:
        """See ``Source.loaded``; every tensor is read."""
        model, tied = self.model, self.tied()
        owners = _owners(dict(model.named_modules()))
        for name, tensor in self._read([name for name in owners if name not in tied]).items():
            _give(*owners[name], tensor)
        model.tie_weights()
        return Source(self.name, model, self.adapter, self.dtype, self.folder, self.extra)

    def extra_pieces(self) -> dict[str, Piece]:
        """See ``Source.extra_pieces``."""
        return self._weights.pieces(self.extra)

    def outside(self) -> dict[str, Piece]:
        """See ``Source.outside``; tensors are read when they are written."""
        likes = self._weights.likes()

        def piece(saved: str, dtype: torch.dtype) -> Piece:
            def chunks() -> Iterator[memoryview | bytes]:
                for _, tensor in self._weights.read([saved]):
                    yield from tensor_piece(tensor.to(dtype)).chunks()

            like = tensor_piece(likes[saved].to(dtype))  # on the meta device: it has no bytes
            return replace(like, chunks=chunks)

        return {
            saved: piece(saved, self._likes[name].dtype)
            for name in self.outside_names()
            for saved in self._origins[name].names
        }

    @contextmanager
    def _filled(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Give modules (by name in the model) what files hold of them while inside."""
        owners = _owners(modules)
        empty = {name: getattr(*owner) for name, owner in owners.items()}
        tied = compat.tied_weights(self.model)
        held = {name: tied.get(name, name) for name in owners}
        try:
            loaded = self._read(list(dict.fromkeys(held.values())))
            for name, owner in owners.items():
                _give(*owner, loaded[held[name]])
            yield
        finally:
            for name, (module, key) in owners.items():
                setattr(module, key, empty[name])

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        """Return copies of tensors, by name in the model, in the dtype that its class gives them.

        That is the dtype asked for but where a class insists on another.
        """
        saved = dict.fromkeys(each for name in names for each in self._origins[name].names)
        made = self.adapter.loaded_tensors(dict(self._weights.read(saved)))
        return {name: made[name].to(self._likes[name].dtype, copy=True) for name in names}


def _owners(modules: dict[str, nn.Module]) -> dict[str, tuple[nn.Module, str]]:
    """Return tensor of a checkpoint (its name in the model) → its module, and its name there.

    Args:
        modules: by their names in the model.
    """
    return {
        f"{path}.{key}" if path else key: (module, key)
        for path, module in modules.items()
        for key in (*module._parameters, *module._buffers)
        if getattr(module, key) is not None and key not in module._non_persistent_buffers_set
    }


def _give(module: nn.Module, key: str, tensor: Tensor) -> None:
    is_buffer = key in module._buffers
    setattr(module, key, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))


def _check_config(folder: Path) -> None:
    """Refuse values of config.json that the model's class does not take.

    Raises:
        ValueError: says which.
    """
    config = read_json(folder / "config.json")
    shapes = shapes_of(validate_folder(folder))
    for kind, message in check_config(config, shapes):
        if kind in ("damaged", "unread"):
            raise (CannotReadError if kind == "unread" else ValueError)(f"{folder}: {message}")
