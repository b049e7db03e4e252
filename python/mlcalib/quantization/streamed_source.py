"""A model in safetensors files, of which one block at a time is in memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib.common import compat
from mlcalib.common.layer_names import saved_name
from mlcalib.common.safetensors_write import Piece, tensor_piece
from mlcalib.models import Adapter, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import architecture, skeleton, stored_dtype
from mlcalib.quantization.source import Source, copied
from mlcalib.quantization.stored_weights import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        adapter, stored = find_adapter(architecture(str(folder))), stored_dtype(folder, dtype)
        self._weights = StoredWeights(folder, stored)
        model = skeleton(str(folder), stored)
        if self._has_own_head(model, adapter):
            model = skeleton(str(folder), stored, untied=True)
        unfuse(model, adapter)
        compat.fill_buffers(model)
        compat.forget_quantizer(model)
        model.config.use_cache = False
        model.config.name_or_path = name
        if model.can_generate() and (folder / "generation_config.json").is_file():
            from transformers import GenerationConfig

            model.generation_config = GenerationConfig.from_pretrained(folder)
        super().__init__(name, model.eval(), adapter, model.dtype, folder)
        self._check_tensors()

    def _has_own_head(self, model: "PreTrainedModel", adapter: Adapter) -> bool:
        """Return whether the config ties weights of which the files hold different ones."""
        if not model.config.tie_word_embeddings:
            return False
        for pair in compat.tied_weights(model).items():
            names = [saved_name(each, adapter.saved_names) for each in pair]
            if set(names) <= set(self._weights.names):
                first, second = (tensor for _, tensor in self._weights.read(names))
                if not torch.equal(first, second):
                    _log.warning(
                        "%s: the config ties %s to %s, but the files hold two different tensors; "
                        "both are kept, and the output's config does not tie them",
                        self._weights.folder,
                        *pair,
                    )
                    return True
        return False

    def _check_tensors(self) -> None:
        """Compare the names, shapes and dtypes of the tensors with the model's."""
        folder, state = self._weights.folder, self.model.state_dict()
        expected = self.outside_names()
        for block, module in self.adapter.named_blocks(self.model):
            expected += [f"{block}.{key}" for key in module.state_dict()]
        there = set(self._weights.names)
        missing = [key for key in expected if self._saved(key) not in there]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} tensors that the model needs, such as "
                f"{self._saved(missing[0])}: its names are not those of transformers' own "
                "checkpoints. Load it with transformers and save it again (save_pretrained)."
            )
        for key in expected:
            found, wanted = self._weights.shape(self._saved(key)), tuple(state[key].shape)
            if found is not None and found != wanted:
                raise ValueError(
                    f"{folder}: {self._saved(key)} is {list(found)}, but the model that "
                    f"config.json describes has {list(wanted)} there. The config belongs to "
                    "another model, or the architecture differs from transformers' class."
                )
        self._weights.check_dtypes(map(self._saved, expected))
        known = {self._saved(key) for key in (*expected, *self.tied())}
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

    @property
    def resident(self) -> int:
        """See ``Source.resident``: none."""
        return 0

    def tied(self) -> set[str]:
        """See ``Source.tied``: as the config says."""
        tied = self.model.config.tie_word_embeddings
        return set(compat.tied_weights(self.model)) if tied else set()

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """See ``Source.embedding``; the output embeddings are left out."""
        blocks = f"{self.adapter.blocks}."
        head = self.model.get_output_embeddings()
        modules = {
            name: module
            for name, module in self.model.named_modules()
            if module is not head and not f"{name}.".startswith(blocks)
        }
        with self._filled(modules):
            yield

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
        owners = dict(model.named_modules())
        names = [name for name, _ in model.named_parameters() if name not in tied]
        for name, tensor in self._read(names).items():
            path, _, key = name.rpartition(".")
            setattr(owners[path], key, nn.Parameter(tensor, requires_grad=False))
        model.tie_weights()
        return Source(self.name, model, self.adapter, self.dtype, self.folder, self.extra)

    def extra_pieces(self) -> dict[str, Piece]:
        """See ``Source.extra_pieces``."""
        return self._weights.pieces(self.extra)

    def outside(self) -> dict[str, Piece]:
        """See ``Source.outside``; tensors are read when they are written."""
        state = self.model.state_dict()

        def piece(name: str) -> Piece:
            def chunks() -> Iterator[memoryview | bytes]:
                yield from tensor_piece(self.tensor(name)).chunks()

            like = tensor_piece(state[name])  # on the meta device: what it is, but no bytes
            return replace(like, chunks=chunks)

        return {name: piece(name) for name in self.outside_names()}

    @contextmanager
    def _filled(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Give modules (by name in the model) their own parameters while inside."""
        owners = {
            f"{path}.{key}" if path else key: (module, key)
            for path, module in modules.items()
            for key, _ in module.named_parameters(recurse=False)
        }
        empty = {name: getattr(*owner) for name, owner in owners.items()}
        tied = compat.tied_weights(self.model)
        try:
            loaded = self._read([name for name in owners if name not in tied])
            for name, tensor in loaded.items():
                module, key = owners[name]
                setattr(module, key, nn.Parameter(tensor, requires_grad=False))
            yield
        finally:
            for name, (module, key) in owners.items():
                setattr(module, key, empty[name])

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        """Return copies of tensors, by name in the model, in the dtype asked for."""
        by_saved = {self._saved(name): name for name in names}
        read = self._weights.read(by_saved)
        return {by_saved[saved]: tensor.to(self.dtype, copy=True) for saved, tensor in read}

    def _saved(self, name: str) -> str:
        return saved_name(name, self.adapter.saved_names)
