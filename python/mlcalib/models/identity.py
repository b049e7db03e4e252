"""Which model it is: what tells one from another of the same name, for records and for keys.

A model's files may be replaced under its name. ``content`` reads every byte of them; ``identity``
is for files that a killed run goes on with, and reads the small ones alone.
"""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib.common import compat
from mlcalib.common.safetensors_read import validate_folder
from mlcalib.common.sha256 import file_sha256, tensors_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Kinds of files beside the weights: configs and tokenizer, templates, sentencepiece, merges.
_BESIDE = (".json", ".jinja", ".model", ".txt")
_RECORD = "mlcalib.json"


def identity(model: str) -> str:
    """Return a model's name and, where it has files, a sha256 of what can be read quickly.

    Args:
        model: a folder, of which the content of JSON files counts, and size and time of weights; a
            GGUF file, likewise; or a hub name, which is all there is of it.
    """
    path = Path(model)
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    files += sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        return model
    digest = hashlib.sha256()
    for file in files:
        content: object = file.stat().st_mtime_ns  # hashing weights would take as long as reading
        if file.suffix == ".json":
            content = file.read_bytes()
        digest.update(repr((file.name, file.stat().st_size, content)).encode())
    return f"{model} {digest.hexdigest()}"


def file_sizes(model: str) -> dict[str, int]:
    """Return name → bytes of a model's files; nothing of a hub name that is no folder."""
    path = Path(model)
    files = [path] if path.is_file() else list(path.glob("*"))
    return {file.name: file.stat().st_size for file in sorted(files) if file.is_file()}


def content(
    model: "str | PreTrainedModel", sha256: Callable[[Path], str] = file_sha256
) -> dict[str, Any]:
    """Return what decides a model's results; JSON types.

    Args:
        model: a folder, of which weights, configs, tokenizer and templates count, and neither
            ``mlcalib.json`` nor the model card; a GGUF file; a hub name, of which the commit
            counts; or a model in memory: its config and parameters.
        sha256: gives the sha256 of a file.

    Raises:
        ValueError: a damaged checkpoint, or a hub name that leads to no commit.
    """
    if not isinstance(model, str):
        tensors = tensors_sha256(model.state_dict())
        return {"config": model.config.to_json_string(), "tensors": tensors}
    path = Path(model)
    if path.is_dir():
        files = [file for file in _files(path, _BESIDE) if file.name != _RECORD]
        return {file.name: sha256(file) for file in files}
    if path.is_file():
        return {"gguf": sha256(path)}
    if (commit := compat.hub_commit(model)) is None:
        raise ValueError(
            f"'{model}' comes from the hub without a commit, so a cache cannot tell whether it is "
            "the model that was measured before; give a folder, or evaluate without --cache."
        )
    return {"hub": model, "commit": commit}


def _files(folder: Path, kinds: Collection[str]) -> list[Path]:
    beside = {file for file in folder.iterdir() if file.suffix in kinds}
    return sorted(beside | set(validate_folder(folder).values()))
