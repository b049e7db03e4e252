"""What a checkpoint takes over from the folder of the model that was quantized.

The files of that folder are copied byte for byte. Its config.json keeps its own keys and words, so
that a reader that understood the source understands the checkpoint; only what quantization changes
is changed. Nothing is loaded and saved again, which would leave keys out or spell them otherwise.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlcalib.common.safetensors_read import ADAPTER, read_json
from mlcalib.formats import MODELOPT, formats

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".onnx", ".h5", ".msgpack",
    ".index.json",
)  # fmt: skip
_OWN = {"config.json", "README.md", "mlcalib.json", ".gitattributes", ADAPTER, MODELOPT}
_SECTIONS = ("quantization_config", "compression_config")
_log = logging.getLogger(__name__)


def copy_files(source: Path, folder: Path) -> None:
    """Copy the source's files: tokenizer, templates, generation config, licence, code and others.

    Not copied are weights, what a checkpoint has of its own (config.json, mlcalib.json, the model
    card), files that repeat a quantization section, folders and links to nothing.
    """
    left = (
        _OWN
        | {MODELOPT}
        | {name for form in formats.names() for name in formats.get(form).config_files}
    )
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in left and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, folder / path.name)


def config_of(
    source: Path, section: dict[str, Any] | None, dtype: torch.dtype, *, tied: bool
) -> dict[str, Any]:
    """Return config.json of a checkpoint: the source's, with what quantization changes.

    Args:
        source: the folder of the model that was quantized.
        section: the new ``quantization_config``; None for none.
        dtype: of the weights that are not quantized.
        tied: whether the output embeddings are the input embeddings.

    Raises:
        ValueError: config.json cannot be read.
    """
    config = changed_config(read_json(source / "config.json"), section, dtype)
    if "tie_word_embeddings" in config or not tied:
        config["tie_word_embeddings"] = tied
    return config


def changed_config(
    config: Mapping[str, Any], section: dict[str, Any] | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Return a config with another quantization section and dtype, and all else as it was.

    Args:
        config: content of a config.json, which is not changed.
        section: the new ``quantization_config``; None for none.
        dtype: of the weights that are not quantized.
    """
    changed = {key: value for key, value in config.items() if key not in _SECTIONS}
    if section is not None:
        changed["quantization_config"] = section
    name = str(dtype).removeprefix("torch.")
    keys = [key for key in ("dtype", "torch_dtype") if key in changed] or ["dtype"]
    return changed | dict.fromkeys(keys, name)


def with_source_card(card: str, source: Path) -> str:
    """Return a model card with the source's own below it; its licence and metadata are kept.

    Metadata that is not the YAML of a card is left out, which a warning says; the text is kept.
    """
    from huggingface_hub import ModelCard, ModelCardData

    path = source / "README.md"
    if not path.is_file():
        return card
    ours = ModelCard(card, ignore_metadata_errors=True)
    data, text = _read_card(path)
    for key, value in vars(ours.data).items():
        if value is not None:
            data[key] = value
    metadata = ModelCardData(ignore_metadata_errors=True, **data).to_yaml()
    below = f"## The card of the model that was quantized\n\n{text.strip()}"
    return f"---\n{metadata}\n---\n\n{ours.text.strip()}\n\n{below}\n"


def _read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Return metadata and text of a model card."""
    import yaml
    from huggingface_hub import ModelCard

    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}, text
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        found = {key: value for key, value in vars(card.data).items() if value is not None}
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        _log.warning("%s: its metadata cannot be read, and is left out: %s", path, error)
        return {}, text
    return found, card.text


def save_json(path: Path, content: Any) -> None:
    """Write JSON as transformers does, but with letters of all scripts as they are."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
