"""Safetensors files and folders of them, checked before anything loads them."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from mlcalib.common.errors import CannotReadError, printable
from mlcalib.common.json_text import loads, members

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_MAX_HEADER = 100_000_000
_MAX_ELEMENTS = 2**63
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# fmt: off
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}
# fmt: on


class TensorEntry(NamedTuple):
    """A tensor in a safetensors header: safetensors' dtype name, shape, and bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: str | Path) -> dict[str, TensorEntry]:
    """Read and check the header of a safetensors file without reading its tensors.

    Args:
        path: the file.

    Returns:
        The tensors by name; byte positions count from the start of the tensor data.

    Raises:
        ValueError: the file is truncated, foreign, or its header contradicts itself; names the file
            and what to do.
    """
    path = Path(path)
    try:
        return _read_header(path)
    except _InvalidHeaderError as error:
        raise ValueError(
            f"{path} is not a usable safetensors file: {error}. "
            "Download or convert it again, and compare its size with the original's."
        ) from error


def data_start(path: str | Path) -> int:
    """Return the byte at which the tensor data of a safetensors file starts."""
    with Path(path).open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def validate_folder(folder: str | Path) -> dict[str, Path]:
    """Check the weights of a model folder before loading it; pickles are never opened.

    The files checked are those that transformers loads: model.safetensors if there is one, else the
    shards in model.safetensors.index.json.

    Args:
        folder: a local folder in the Hugging Face layout.

    Returns:
        The file of each tensor.

    Raises:
        CannotReadError: the weights are pickles, an adapter's, or in a layout of another library.
        ValueError: not a folder, no safetensors weights, a shard missing, a file invalid, or a
            tensor that two shards hold with different values.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a downloaded model")
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("transformers_weights") is not None:
        # transformers would load the file that this key names, a pickle perhaps, and not ours.
        raise ValueError(f"{config} redirects to other weights; remove its transformers_weights")
    if (folder / SINGLE).is_file():
        return dict.fromkeys(read_header(folder / SINGLE), folder / SINGLE)
    if (folder / INDEX).is_file():
        return _validate_shards(folder)
    raise _other_weights(folder) or ValueError(
        f"{folder} has neither {SINGLE} nor {INDEX}; is the download complete?"
    )


def _other_weights(folder: Path) -> CannotReadError | None:
    """Return an error that says which other weights a folder holds; None for none."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if ADAPTER in names:
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        return CannotReadError(
            f"{folder} holds an adapter (LoRA) for the model {base}, and no model; merge the two "
            "(PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(...)) and give "
            "the folder that this makes"
        )
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return CannotReadError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when loaded; "
            "convert it to safetensors where you trust it: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    if others := [name for name in names if name.endswith(".safetensors")]:
        return CannotReadError(
            f"{folder} has its weights in {others[0]}, and neither {SINGLE} nor {INDEX}: files of "
            "another library's layout, or a download without its index. Get the model in the "
            "layout of transformers"
        )
    return None


class _InvalidHeaderError(Exception):
    """What is wrong with a header; ``read_header`` adds the file and the remedy."""


def _read_header(path: Path) -> dict[str, TensorEntry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise _InvalidHeaderError("it is a Git LFS pointer (git lfs pull fetches the file)")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise _InvalidHeaderError(
                f"its first 8 bytes give a header of {length} bytes, "
                f"the file has {size} and a header at most {_MAX_HEADER}"
            )
        try:
            entries = _entries(file.read(length).decode())
        except ValueError as error:
            raise _InvalidHeaderError(f"its header is not a JSON object ({error})") from error
    end = 0
    for name in sorted(entries, key=lambda name: entries[name][2:]):
        entry = entries[name]
        if entry.begin != end:
            raise _InvalidHeaderError(
                f"tensor {printable(name)} starts at byte {entry.begin}, not at {end}"
            )
        end = entry.end
    if end != size - 8 - length:
        raise _InvalidHeaderError(
            f"its tensors take {end} bytes, the file has {size - 8 - length} after the header"
        )
    try:
        with safe_open(path, "np"):  # which has rules of its own, and reads no tensors here
            return entries
    except SafetensorError as error:
        raise _InvalidHeaderError(f"the library safetensors refuses it ({error})") from error


def _entries(header: str) -> dict[str, TensorEntry]:
    """Return the checked entries of a header, in about twice its size."""
    entries = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # a few, of very many tensors
    for name, value in members(header):
        if name != "__metadata__":
            dtype, shape, begin, end = _entry(name, value)
            shape = shapes.setdefault(shape, shape)
            entries[name] = TensorEntry(sys.intern(dtype), shape, begin, end)
    return entries


def _entry(name: str, entry: Any) -> TensorEntry:
    """Return a checked entry of the header."""
    shown = printable(name)
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        integers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError) as error:
        raise _InvalidHeaderError(f"tensor {shown} lacks dtype, shape or offsets") from error
    if any(type(value) is not int or value < 0 for value in integers):
        raise _InvalidHeaderError(f"tensor {shown} has a shape or offset that is not a count")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _InvalidHeaderError(f"tensor {shown} has an unknown dtype {printable(repr(dtype))}")
    if (end - begin) * 8 != _elements(shape) * _BITS[dtype]:
        raise _InvalidHeaderError(
            f"tensor {shown}, {dtype} {printable(str(shape))}, does not fill bytes {begin} to {end}"
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _elements(shape: list[int]) -> int:
    """Return the product of a shape, or the first that is too large: no number grows long."""
    elements = 1
    for size in shape:
        elements *= size
        if elements > _MAX_ELEMENTS:
            break
    return elements


def _validate_shards(folder: Path) -> dict[str, Path]:
    """Check an index and its shards; return the file of each tensor."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX} has no weight_map; download it again")
    headers = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        # An index must not reach outside its folder, nor make a loader open a pickle.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            named = printable(repr(shard))
            raise ValueError(f"{folder / INDEX} names {named}, not a safetensors file beside it")
        if not (folder / shard).is_file():
            raise ValueError(
                f"{folder} lacks {printable(shard)}, which {INDEX} names; download it again"
            )
        headers[shard] = read_header(folder / shard)
    for tensor, shard in weight_map.items():
        if tensor not in headers[str(shard)]:
            raise ValueError(
                f"{folder / shard} lacks {printable(tensor)}, which {INDEX} places there"
            )
    found = {tensor: folder / shard for tensor, shard in weight_map.items()}
    for shard, header in headers.items():
        for tensor in header:  # readers take what is in a shard, whether the index names it or not
            there = found.setdefault(tensor, folder / shard)
            if there.name != shard and _bytes_of(there, tensor) != _bytes_of(
                folder / shard, tensor
            ):
                raise ValueError(
                    f"{there} and {folder / shard} both hold {printable(tensor)}, with different "
                    "values, and readers differ in which they take; download the model again"
                )
    return found


def _bytes_of(path: Path, tensor: str) -> bytes:
    """Return the bytes of a tensor."""
    entry = read_header(path)[tensor]
    with path.open("rb") as file:
        file.seek(data_start(path) + entry.begin)
        return file.read(entry.end - entry.begin)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file cannot be read, is not JSON, or holds no object; names it.
    """
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content
