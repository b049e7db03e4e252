"""Models of the Hugging Face hub: no more than is needed is fetched, and none where it is there."""

import errno
import logging
from pathlib import Path
from typing import Any

from mlcalib.common.safetensors_read import INDEX, SINGLE, read_json

_SMALL = (
    "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken",
    "README.md", "LICENSE*", "NOTICE*", "*.py",
)  # fmt: skip
_log = logging.getLogger(__name__)


def split_revision(source: str) -> tuple[str, dict[str, str]]:
    """Return the name of a model, and which of its revisions is meant, as an option.

    Args:
        source: a folder, a file, or a name on the hub, which may end in ``@REVISION``: a branch, a
            tag or a commit.

    Returns:
        The name, and ``{"revision": …}`` or nothing.

    Raises:
        ValueError: nothing stands before or after the ``@``.
    """
    here = source.startswith((".", "/", "~")) or Path(source).exists()
    if here or "@" not in source:
        return source, {}
    name, _, revision = source.partition("@")
    if not (name and revision):
        raise ValueError(f"'{source}' is not a model; expected NAME@REVISION, e.g. org/model@v1.")
    return name, {"revision": revision}


def model_folder(name: str) -> Path:
    """Return a model's folder on this machine; a hub name's files are fetched.

    They are configs, tokenizer and templates, and of the weights the files that the index names. A
    hub that cannot be reached, or a cache that cannot be written, does for what is in the cache.

    Args:
        name: a folder, or a hub name, with ``@REVISION`` where it is not the newest.

    Raises:
        FileNotFoundError: there is no such folder, or the model is not in the cache and the hub
            cannot be reached.
        OSError: the hub has no such model, or gives no access to it.
    """
    path = Path(name).expanduser()
    if path.is_dir() or name.startswith((".", "/", "~")):
        if not path.is_dir():
            raise FileNotFoundError(f"There is no folder '{path}'.")
        return path
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, options = split_revision(name)
    try:
        folder = _snapshot(name, _SMALL, **options)
        index = folder / INDEX
        weights = {SINGLE}
        if index.is_file():
            weights = {str(file) for file in read_json(index).get("weight_map", {}).values()}
        return _snapshot(name, (*_SMALL, *sorted(weights)), revision=folder.name)
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"'{name}' is neither a folder nor a model in the hub's cache on this machine"
            f"{''.join(f' at {key} {value}' for key, value in options.items())}, and the hub "
            "cannot be reached. Fetch it where there is a network (hf download "
            f"{' '.join([name, *(f'--{key} {value}' for key, value in options.items())])}), or "
            "give a folder."
        ) from error


def _snapshot(name: str, wanted: tuple[str, ...], **options: Any) -> Path:
    """Fetch files of a model into the cache."""
    from huggingface_hub import snapshot_download

    patterns = list(wanted)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _log.warning("the hub's cache cannot be written (%s): what is in it is used", error)
        options["local_files_only"] = True
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
