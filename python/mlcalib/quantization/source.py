"""Where a pass takes its blocks from: a model in memory, or files of which one block is read."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mlcalib.common import compat
from mlcalib.common.layer_names import saved_name
from mlcalib.common.safetensors_read import validate_folder
from mlcalib.common.safetensors_write import Piece, tensor_piece
from mlcalib.models import Adapter, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.identity import file_hashes
from mlcalib.models.loading import (
    architecture,
    check_dtype,
    check_source,
    load_model,
    shared_copy,
    skeleton,
    stored_dtype,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Source:
    """A model that is held in memory.

    Attributes:
        name: as it was given.
        model: its modules.
        adapter: its family.
        dtype: of its weights.
    """

    name: str
    model: "PreTrainedModel"
    adapter: Adapter
    dtype: torch.dtype

    @property
    def resident(self) -> int:
        """Bytes of weights that are always in memory."""
        return sum(each.numel() * each.element_size() for each in self.model.parameters())

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """Inside, all that runs before the first block has its weights."""
        yield

    @contextmanager
    def block(self, name: str) -> Iterator[nn.Module]:
        """Give a copy of a block with its weights, whose parameters can be replaced."""
        yield copied(self.model.get_submodule(name))

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """The sha256 of each file that the model comes from."""
        return file_hashes(self.name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name in the model."""
        found: Tensor = self.model.state_dict()[name]
        return found

    def tied(self) -> set[str]:
        """Return the names of weights that are another's, and that a checkpoint leaves out."""
        state = self.model.state_dict()
        return {
            target
            for target, source in compat.tied_weights(self.model).items()
            if target in state and state[target].data_ptr() == state[source].data_ptr()
        }

    def outside_names(self) -> list[str]:
        """Return the names of the tensors outside of blocks that a checkpoint holds."""
        tied, blocks = self.tied(), f"{self.adapter.blocks}."
        names = self.model.state_dict()
        return [key for key in names if not key.startswith(blocks) and key not in tied]

    def outside(self) -> dict[str, Piece]:
        """Return the tensors of the checkpoint outside of blocks, by their names in the model."""
        state = self.model.state_dict()
        return {name: tensor_piece(state[name]) for name in self.outside_names()}

    def loaded(self) -> "Source":
        """Return a source that holds the whole model in memory."""
        return self


class UnloadedSource(Source):
    """A model whose weights are loaded when all that is asked for has been checked."""

    def __init__(self, name: str, dtype: str) -> None:
        """Make the modules without weights, from the config alone.

        Args:
            name: a folder, a hub name or a GGUF file.
            dtype: ``auto`` (as stored; float32 for GGUF), ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            FileNotFoundError, ValueError, NotImplementedError: see ``load_model``; an architecture
                without an adapter.
        """
        check_source(name)
        self._asked = dtype
        adapter = find_adapter(architecture(name))
        if name.endswith(".gguf"):
            check_dtype(dtype)
            stored = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        else:
            stored = stored_dtype(local_folder(name), dtype)
        model = skeleton(name, stored)
        unfuse(model, adapter)
        super().__init__(name, model, adapter, stored)

    def loaded(self) -> Source:
        """See ``Source.loaded``."""
        model = load_model(self.name, self._asked)
        unfuse(model, self.adapter)
        return Source(self.name, model, self.adapter, model.dtype)


class StreamedSource(Source):
    """A model in safetensors files, of which one block at a time is in memory."""

    def __init__(self, name: str, folder: Path, dtype: str) -> None:
        """Make the modules without weights.

        Args:
            name: as it was given.
            folder: with safetensors.
            dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            ValueError: a damaged checkpoint, or one whose tensors have other names than the
                model's.
            NotImplementedError: an architecture without an adapter.
        """
        self._folder, self._files = folder, validate_folder(folder)
        adapter = find_adapter(architecture(str(folder)))
        model = skeleton(str(folder), stored_dtype(folder, dtype))
        unfuse(model, adapter)
        compat.fill_buffers(model)
        model.config.use_cache = False
        model.config.name_or_path = name
        if model.can_generate() and (folder / "generation_config.json").is_file():
            from transformers import GenerationConfig

            model.generation_config = GenerationConfig.from_pretrained(folder)
        super().__init__(name, model.eval(), adapter, model.dtype)
        expected = self.outside_names()
        for block, module in adapter.named_blocks(model):
            expected += [f"{block}.{key}" for key in module.state_dict()]
        missing = [key for key in expected if self._saved(key) not in self._files]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} tensors that the model needs, such as "
                f"{self._saved(missing[0])}: its names are not those of transformers' own "
                "checkpoints. Load it with transformers and save it again (save_pretrained)."
            )

    @property
    def resident(self) -> int:
        """See ``Source.resident``: none."""
        return 0

    def tied(self) -> set[str]:
        """See ``Source.tied``: as the config says."""
        tied = self.model.config.tie_word_embeddings
        return set(compat.tied_weights(self.model)) if tied else set()

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """See ``Source.fingerprint``: the weights, the config and the tokenizer."""
        return file_hashes(self._folder)

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
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[self._saved(name)], []).append(name)
        found = {}
        for file, inside in by_file.items():
            with safe_open(file, framework="pt") as opened:  # a view of the file: cloned
                for name in inside:
                    tensor = opened.get_tensor(self._saved(name))
                    found[name] = tensor.to(self.dtype, copy=True)
        return found

    def _saved(self, name: str) -> str:
        return saved_name(name, self.adapter.saved_names)


def open_source(model: "str | Path | PreTrainedModel", dtype: str) -> Source:
    """Open a model: streamed from a folder or the hub's snapshot; others are held in memory.

    Args:
        model: a folder with safetensors, a hub name, a GGUF file, or a transformers model, which
            is not changed.
        dtype: ``auto`` (as stored; float32 for GGUF), ``float32``, ``bfloat16`` or ``float16``; of
            a model that is loaded here.

    Raises:
        FileNotFoundError, ValueError, NotImplementedError: see ``StreamedSource`` and
            ``load_model``.
    """
    if not isinstance(model, str | Path):
        return live_source(model)
    name = str(model)
    check_source(name)
    if name.endswith(".gguf"):
        return UnloadedSource(name, dtype).loaded()
    return StreamedSource(name, local_folder(name), dtype)


def live_source(model: "PreTrainedModel") -> Source:
    """Open a transformers model; its parameters are shared, and it is not changed."""
    adapter = find_adapter(type(model).__name__)
    own = shared_copy(model).eval()
    unfuse(own, adapter)
    name = model.config.name_or_path or type(model).__name__
    return Source(name, own, adapter, own.dtype)


def local_folder(name: str) -> Path:
    """Return a model's folder on this machine; a hub name's files are fetched.

    Raises:
        OSError: the hub has no such model, or cannot be reached.
    """
    if (path := Path(name)).is_dir():
        return path
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    return Path(snapshot_download(name, allow_patterns=wanted))


def copied(block: nn.Module) -> nn.Module:
    """Return other modules with the same parameters and buffers."""
    shared = {id(each): each for each in (*block.parameters(), *block.buffers())}
    return copy.deepcopy(block, shared)
