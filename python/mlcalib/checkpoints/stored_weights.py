"""The tensors of a model's folder as the model needs them: codes are dequantized when read."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mlcalib.checkpoints.read import Checkpoint, linears_with
from mlcalib.common.errors import CannotReadError
from mlcalib.common.safetensors_read import TensorEntry, read_header, read_json, validate_folder
from mlcalib.common.safetensors_write import Piece, file_pieces
from mlcalib.formats import formats, stored_section

_FLOATS = ("F64", "F32", "BF16", "F16")
_CODES = ("F8_E4M3", "F8_E5M2", "I8")
_SCALES = ("weight_scale_inv", "weight_scale")


class StoredWeights:
    """The tensors in a folder's safetensors files, by their names there.

    Weights that are codes are read as what they stand for: FP8 and int8 with a scale for each
    tensor, row or block of it, and all formats that mlcalib reads. ``names`` has them under the
    names of the weights.

    Attributes:
        folder: the model's.
        names: what can be read.
        section: the quantization section; None of a model that is not quantized.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        """Look at the files; no tensor is read.

        Args:
            folder: with safetensors.
            dtype: of the model, in which formats keep scales.

        Raises:
            ValueError: a damaged checkpoint, or codes of which it is not known what they stand for.
            NotImplementedError: codes of a kind that mlcalib does not read; names it.
        """
        self.folder = folder
        self._files = validate_folder(folder)
        self._entries: dict[str, TensorEntry] = {}
        for file in dict.fromkeys(self._files.values()):
            self._entries |= read_header(file)
        section, self._from = stored_section(folder, read_json(folder / "config.json"))
        if section is not None and not (
            isinstance(section, dict) and isinstance(section.get("quant_method"), str)
        ):
            raise ValueError(
                f"{folder}/{self._from}: quantization_config has no quant_method; get the file "
                "again, or remove the section if the weights are in floating point"
            )
        self.section: dict[str, Any] | None = section
        self._packed: Checkpoint | None = None
        self._scaled: dict[str, str] = {}  # weight → its scale
        self._owned: dict[str, set[str]] = {}  # weight that is codes → its tensors
        if self.section is not None:
            self._understand(self.section, dtype)
        codes = {name for tensors in self._owned.values() for name in tensors}
        self.names = [*(name for name in self._files if name not in codes), *self._owned]

    @property
    def packed(self) -> Checkpoint | None:
        """The linears whose codes a format of mlcalib reads; None where there are none."""
        return self._packed

    @property
    def files(self) -> set[Path]:
        """The files that hold tensors."""
        return set(self._files.values())

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape; None where its codes do not tell."""
        if self._packed is not None and name in self._owned:
            linear = name.removesuffix(".weight")
            shapes = {each: self._entries[each].shape for each in self._packed.linears[linear]}
            found = self._packed.format.stored_shape(linear, shapes)
            return found if found is not None and -1 not in found else None
        return self._entries[name].shape

    def likes(self) -> dict[str, Tensor]:
        """Return name → a tensor of the shape that it is read in, on the meta device.

        Those whose codes do not tell their shape are of shape [0].
        """
        shapes = {name: self.shape(name) for name in self.names}
        return {
            name: torch.empty((0,) if shape is None else shape, device="meta")
            for name, shape in shapes.items()
        }

    def check_dtypes(self, names: Iterable[str]) -> None:
        """Refuse codes without a section that says what they stand for.

        Raises:
            ValueError: a tensor is neither floating point nor understood; names it.
        """
        for name in names:
            if name not in self._owned and (kind := self._entries[name].dtype) not in _FLOATS:
                raise ValueError(
                    f"{self.folder}: {name} is {kind}, and nothing says which numbers that stands "
                    "for: there is no quantization_config, in config.json or in a file of its own. "
                    "Give the model in floating point, or restore the missing section."
                )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors, file by file; codes dequantized (float32)."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            if self._packed is not None and name in self._owned:
                yield name, self._packed.linear(name.removesuffix(".weight")).dequantize()
            else:
                by_file.setdefault(self._files[name], []).append(name)
        for file, inside in by_file.items():
            with safe_open(file, framework="pt") as opened:  # a view of the file: to be copied
                for name in inside:
                    yield name, self._scaled_up(name, opened.get_tensor(name))

    def pieces(self, names: Iterable[str]) -> dict[str, Piece]:
        """Return tensors as they are in the files, to be written elsewhere."""
        wanted = list(names)
        files = dict.fromkeys(self._files[name] for name in wanted)
        pieces = {name: piece for file in files for name, piece in file_pieces(file).items()}
        return {name: pieces[name] for name in wanted}

    def _understand(self, section: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Find out which tensors are codes, and of what."""
        method = str(section.get("quant_method"))
        entries = self._entries
        form = None
        if not _scaled(section):
            if method not in _readable():
                said = " ".join(filter(None, (method, _algorithm(section))))
                raise NotImplementedError(
                    f"{self.folder} is quantized with '{said}' ({self._from}), whose weights "
                    f"mlcalib does not read; it reads fp8, FP8 of modelopt and "
                    f"{', '.join(_readable())}. Give the model in floating point."
                )
            try:
                form = formats.get(method).of_config(section)
            except (CannotReadError, NotImplementedError) as error:
                raise type(error)(
                    f"{self.folder}: {error}. Give the model in floating point."
                ) from error
        if form is not None:
            linears = linears_with(self._files, f".{form.codes}")
            specs = form.read_specs(dict(section), linears, dtype)
            config = {"quantization_config": dict(section)}
            self._packed = Checkpoint(self._files, config, form, linears, specs, dtype)
            self._owned = {
                f"{n}.weight": {each for each in own if not each.endswith(".bias")}
                for n, own in linears.items()
            }
            return
        for name in (each for each, entry in entries.items() if entry.dtype in _CODES):
            prefix = name.removesuffix("weight")
            scale = next((f"{prefix}{each}" for each in _SCALES if prefix + each in entries), None)
            if scale is None or f"{prefix}weight_zero_point" in entries:
                raise ValueError(
                    f"{self.folder}: {name} is {entries[name].dtype} without a scale that says "
                    f"what it stands for (expected {' or '.join(prefix + each for each in _SCALES)}"
                    ", and no zero point). Give the model in floating point."
                )
            self._scaled[name] = scale
            self._shared(name)
            beside = {f"{prefix}input_scale", f"{prefix}weight_shape"} & entries.keys()
            self._owned[name] = {name, scale} | beside

    def _scaled_up(self, name: str, tensor: Tensor) -> Tensor:
        """Return what codes stand for; other tensors as they are."""
        if name not in self._scaled:
            return tensor
        scale = self._scaled[name]
        with safe_open(self._files[scale], framework="pt") as opened:
            factors = opened.get_tensor(scale).float()
        return tensor.float() * _spread(factors, tensor, self._shared(name))

    def _shared(self, name: str) -> tuple[int, int]:
        """Return how many rows and columns of codes share a scale."""
        scale = self._scaled[name]
        shapes = (self._entries[scale].shape, self._entries[name].shape)
        return _steps(*shapes, f"{self.folder}: {scale}", self._block())

    def _block(self) -> tuple[int, int] | None:
        """Return the rows and columns that share a scale, where the section says."""
        section = self.section or {}
        size = section.get("weight_block_size")
        for group in section.get("config_groups", {}).values():
            size = size or group.get("weights", {}).get("block_structure")
        return (int(size[0]), int(size[1])) if size else None


def _scaled(section: Mapping[str, Any]) -> bool:
    """Return whether a section says that weights are codes with scales beside them."""
    method, layout = section.get("quant_method"), section.get("format")
    return (
        method == "fp8"
        or (method == "modelopt" and _algorithm(section) == "FP8")
        or (method == "compressed-tensors" and layout in ("float-quantized", "naive-quantized"))
    )


def _algorithm(section: Mapping[str, Any]) -> str:
    """Return what ModelOpt calls its algorithm, in config.json or in a file of its own."""
    inside = section.get("quantization")
    place = inside if isinstance(inside, Mapping) else section
    return str(place.get("quant_algo") or "")


def _readable() -> list[str]:
    """Return the formats of folders that keep codes."""
    kinds = {name: formats.get(name) for name in formats.names()}
    return [name for name, kind in kinds.items() if kind.codes is not None and kind.file is None]


def _steps(
    scale: tuple[int, ...], weight: tuple[int, ...], what: str, block: tuple[int, int] | None
) -> tuple[int, int]:
    """Return how many rows and columns of a weight share a scale, by the shapes of the two.

    Raises:
        CannotReadError: one scale is for something else.
    """
    if math.prod(scale) == 1:
        return math.prod(weight), math.prod(weight)
    if len(weight) == 2:
        rows, columns = weight
        if math.prod(scale) == rows == scale[0]:
            return 1, columns
        if block and scale == tuple(map(lambda size, step: -(-size // step), weight, block)):
            return block
    raise CannotReadError(
        f"{what} is {list(scale)} for a weight {list(weight)}; expected one scale, one for each "
        f"row, or one for each block{f' of {list(block)}' if block else ''}."
    )


def _spread(scale: Tensor, weight: Tensor, steps: tuple[int, int]) -> Tensor:
    """Return scales of a tensor, of its rows or of its blocks, for each of its elements."""
    if scale.numel() == 1:
        return scale.reshape(1)
    rows, columns = weight.shape
    wide = scale.reshape(scale.shape[0], -1).repeat_interleave(steps[0], 0)[:rows]
    return wide if steps == (1, columns) else wide.repeat_interleave(steps[1], 1)[:, :columns]
