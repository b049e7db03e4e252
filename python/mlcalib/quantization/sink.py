"""Where the finished blocks of a job go: into files that outlive the process, or into a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.safetensors_write import Piece, tensor_piece
from mlcalib.formats import Format, cache_scales
from mlcalib.models import Adapter
from mlcalib.quantization.block_files import BlockFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Content = tuple[str, Tensor | QuantizedLinear]
"""A tensor by its name in the model, or a quantized linear by its own."""


class Sink(Protocol):
    """Keeps finished blocks, by their names in the model."""

    @property
    def checkpoint_format(self) -> Format:
        """How the checkpoint holds quantized linears."""

    def has(self, block_name: str) -> bool:
        """Return whether a block is finished."""

    def keep(
        self,
        block_name: str,
        block: nn.Module,
        linears: Mapping[str, QuantizedLinear],
        record: Mapping[str, Any],
    ) -> None:
        """Keep a block whose linears hold dequantized weights, their codes, and a record of it."""

    def restore(self, block_name: str, block: nn.Module) -> None:
        """Give a block the parameters that it was kept with."""

    def record(self, block_name: str) -> dict[str, Any]:
        """Return the record of a finished block."""

    def pieces(self, block_name: str) -> dict[str, Piece]:
        """Return the tensors of a finished block, by their names in the checkpoint, in order."""

    def contents(self, block_name: str) -> Iterator[Content]:
        """Yield what a finished block holds, for a format that has one file of its own."""


@dataclass
class FileSink:
    """Keeps blocks in files, packed as the checkpoint holds them; see ``Sink``.

    Attributes:
        files: one for each finished block.
        adapter: the model's family.
        checkpoint_format: how linears are held.
        specs: the grid of each linear.
    """

    files: BlockFiles
    adapter: Adapter
    checkpoint_format: Format
    specs: Mapping[str, GridSpec]

    @property
    def _whole(self) -> bool:
        """Whether linears are packed only when the checkpoint's one file is written."""
        return self.checkpoint_format.file is not None

    def has(self, block_name: str) -> bool:
        """See ``Sink``."""
        return self.files.has(block_name)

    def keep(
        self,
        block_name: str,
        block: nn.Module,
        linears: Mapping[str, QuantizedLinear],
        record: Mapping[str, Any],
    ) -> None:
        """See ``Sink``.

        Raises:
            OSError: the disk is full.
        """
        tensors: dict[str, Tensor] = {}
        if self._whole:
            for name, content in _contents(block_name, block, linears):
                if isinstance(content, QuantizedLinear):
                    grid = content.grid
                    tensors[f"{name}.codes"] = content.codes
                    tensors[f"{name}.scale"], tensors[f"{name}.zero"] = grid.scale, grid.zero
                else:
                    tensors[name] = content
        else:
            tensors = _packed(self.checkpoint_format, self.adapter, block_name, block, linears)
            tensors |= _cached(self.adapter, block, record)
        self.files.write(block_name, tensors, record)

    def restore(self, block_name: str, block: nn.Module) -> None:
        """See ``Sink``; weights become what ``Variant.solve`` leaves."""
        tensors = self.files.tensors(block_name)
        for name in _cached(self.adapter, block, self.record(block_name)):
            del tensors[name]  # nothing of the block
        floating = tensors if self._whole else self.adapter.loaded_tensors(tensors)
        for path, module in block.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                layer = f"{block_name}.{path}".removesuffix(".")
                value = floating.get(f"{layer}.{key}")
                if layer in self.adapter.places or (value is None and layer not in self.specs):
                    continue  # another block's, too
                if value is None:
                    value = self._linear(tensors, layer).dequantize()
                setattr(module, key, nn.Parameter(value.to(parameter), requires_grad=False))

    def record(self, block_name: str) -> dict[str, Any]:
        """See ``Sink``."""
        return self.files.record(block_name)

    def pieces(self, block_name: str) -> dict[str, Piece]:
        """See ``Sink``; read when they are written."""
        return self.files.pieces(block_name)

    def contents(self, block_name: str) -> Iterator[Content]:
        """See ``Sink``."""
        tensors = self.files.tensors(block_name)
        for name in self.files.record(block_name)["names"]:
            layer, _, kind = name.rpartition(".")
            if layer not in self.specs or kind == "bias":
                yield name, tensors[name]
            elif kind == "codes":
                yield layer, self._linear(tensors, layer)

    def _linear(self, tensors: Mapping[str, Tensor], layer: str) -> QuantizedLinear:
        spec = self.specs[layer]
        if self._whole:
            grid = Grid(tensors[f"{layer}.scale"], tensors[f"{layer}.zero"], spec)
            return QuantizedLinear(tensors[f"{layer}.codes"], grid)
        return self.checkpoint_format.unpack(self.adapter.saved(layer), tensors, spec)


@dataclass
class MemorySink:
    """Puts blocks back into a model in memory, and keeps their codes; see ``Sink``.

    Attributes:
        model: its blocks get the quantized blocks' parameters.
        adapter: its family.
        checkpoint_format: how a checkpoint would hold linears.
        linears: name in the model → codes and grid.
        records: block → its record.
    """

    model: "PreTrainedModel"
    adapter: Adapter
    checkpoint_format: Format
    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def has(self, block_name: str) -> bool:
        """See ``Sink``."""
        return block_name in self.records

    def keep(
        self,
        block_name: str,
        block: nn.Module,
        linears: Mapping[str, QuantizedLinear],
        record: Mapping[str, Any],
    ) -> None:
        """See ``Sink``."""
        copy_parameters(block, self.model.get_submodule(block_name))
        home = next(self.model.get_submodule(block_name).parameters()).device
        self.linears |= {name: linear.to(home) for name, linear in linears.items()}
        self.records[block_name] = dict(record)

    def restore(self, block_name: str, block: nn.Module) -> None:
        """See ``Sink``."""
        copy_parameters(self.model.get_submodule(block_name), block)

    def record(self, block_name: str) -> dict[str, Any]:
        """See ``Sink``."""
        return self.records[block_name]

    def pieces(self, block_name: str) -> dict[str, Piece]:
        """See ``Sink``; packed now."""
        block = self.model.get_submodule(block_name)
        packed = _packed(self.checkpoint_format, self.adapter, block_name, block, self.linears)
        packed |= _cached(self.adapter, block, self.records.get(block_name, {}))
        return {name: tensor_piece(tensor) for name, tensor in packed.items()}

    def contents(self, block_name: str) -> Iterator[Content]:
        """See ``Sink``."""
        return _contents(block_name, self.model.get_submodule(block_name), self.linears)


def copy_parameters(block: nn.Module, other: nn.Module) -> None:
    """Let another block of the same modules have the same parameters, on its own device."""
    for path, module in block.named_modules():
        target = other.get_submodule(path)
        for key, parameter in module.named_parameters(recurse=False):
            home = getattr(target, key).device
            setattr(target, key, nn.Parameter(parameter.detach().to(home), requires_grad=False))


def _contents(
    block_name: str, block: nn.Module, linears: Mapping[str, QuantizedLinear]
) -> Iterator[Content]:
    """Yield a block's tensors, and a linear in place of each weight that is quantized."""
    for key, tensor in block.state_dict().items():
        layer = f"{block_name}.{key.removesuffix('.weight')}"
        if layer in linears:
            yield layer, linears[layer]
        else:
            yield f"{block_name}.{key}", tensor


def _cached(adapter: Adapter, block: nn.Module, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the scales of keys and values that a block's record has ranges of."""
    scales = cache_scales(record.get("kv_cache", {}), next(block.parameters()).dtype)
    return {adapter.saved(name): scale for name, scale in scales.items()}


def _packed(
    checkpoint_format: Format,
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    linears: Mapping[str, QuantizedLinear],
) -> dict[str, Tensor]:
    """Return the tensors of a quantized block, by their names in the checkpoint, in order."""
    found: dict[str, Tensor] = {}
    floating: set[str] = set()
    for name, content in _contents(block_name, block, linears):
        if isinstance(content, QuantizedLinear):
            packed = checkpoint_format.pack(name, content)
            floating |= {each for each in packed if each == f"{name}.weight"}
            found |= packed
        else:
            floating.add(name)
            found[name] = content
    return adapter.saved_tensors(found, floating)
