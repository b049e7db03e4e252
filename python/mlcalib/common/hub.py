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
    if _is_here(source) or "@" not in source:
        return source, {}
    name, _, revision = source.partition("@")
    if not (name and revision):
        raise ValueError(f"'{source}' is not a model; expected NAME@REVISION, e.g. org/model@v1.")
    return name, {"revision": revision}


def located(source: Any, revision: str | None, token: str | None) -> Any:
    """Return what a model is read from that is named together with a revision or a token.

    Args:
        source: a name on the hub; if neither is given anything, which is returned.
        revision: a branch, a tag or a commit.
        token: of the hub. The files are then fetched at once, so that it is needed no more.

    Returns:
        ``NAME@REVISION``, or with a token the folder of the files in the hub's cache.

    Raises:
        ValueError: the model is none of the hub, or has a revision already.
        OSError: see ``model_folder``.
    """
    if revision is None and token is None:
        return source
    given = "revision=" if revision is not None else "token="
    if not isinstance(source, str | Path) or _is_here(str(source)):
        shown = f"'{source}' is on this machine"
        if not isinstance(source, str | Path):
            shown = f"{type(source).__name__} is in memory"
        raise ValueError(f"{given} is for models of the hub, but {shown}; leave it out.")
    name, options = split_revision(str(source))
    if revision is not None and options:
        raise ValueError(f"'{source}' has a revision, and revision= was given too; give one.")
    revision = revision or options.get("revision")
    name = name if revision is None else f"{name}@{revision}"
    return name if token is None else str(model_folder(name, token))


def hub_name(source: str) -> str:
    """Return ``NAME@COMMIT`` of a folder in the hub's cache, and any other name as it is."""
    snapshot = Path(source)
    kind, _, name = snapshot.parent.parent.name.partition("--")
    if snapshot.parent.name != "snapshots" or kind != "models" or not name:
        return source
    return f"{name.replace('--', '/')}@{snapshot.name}"


def _is_here(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).exists()


def model_folder(name: str, token: str | None = None) -> Path:
    """Return a model's folder on this machine; a hub name's files are fetched.

    They are configs, tokenizer and templates, and of the weights the files that the index names. A
    hub that cannot be reached, or a cache that cannot be written, does for what is in the cache.

    Args:
        name: a folder, or a hub name, with ``@REVISION`` where it is not the newest.
        token: of the hub; None for the one that ``hf auth login`` or ``HF_TOKEN`` set.

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
        folder = _snapshot(name, _SMALL, token=token, **options)
        index = folder / INDEX
        weights = {SINGLE}
        if index.is_file():
            weights = {str(file) for file in read_json(index).get("weight_map", {}).values()}
        return _snapshot(name, (*_SMALL, *sorted(weights)), token=token, revision=folder.name)
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
