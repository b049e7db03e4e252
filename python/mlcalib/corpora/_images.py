"""The images of a message: local files beside its text."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlcalib.corpora._documents import Tally

_KINDS = ("image", "image_url", "input_image")
_KEYS = ("path", "url", "image", "image_url")


def image_parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a message's content that are images."""
    content = message.get("content", message.get("value"))
    parts = content if isinstance(content, list) else []
    return [each for each in parts if isinstance(each, Mapping) and each.get("type") in _KINDS]


def message_with_images(
    message: Mapping[str, Any], role: str, tally: Tally, where: str
) -> dict[str, Any] | None:
    """Return a message as processors of transformers take it, or count why it cannot be.

    Args:
        message: of a conversation with images; it need not have any itself.
        role: of who speaks.
        tally: counts what is left out; ``images`` is the folder of relative paths.
        where: the conversation, in messages.
    """
    content = message.get("content", message.get("value"))
    parts: list[dict[str, str]] = []
    for part in _parts(content):
        if isinstance(part.get("text"), str) and part.get("type", "text") == "text":
            parts.append({"type": "text", "text": part["text"]})
        elif part.get("type") in _KINDS:
            file = _file(part, tally.images or Path())
            if file is None or not _is_file(file):
                said = f"{where}: {next(iter(_named(part)), 'no path')}"
                tally.drop("conversations with images that are no files on this machine", said)
                return None
            parts.append({"type": "image", "path": str(file)})
        else:
            said = f"{where}, of the {role}: a part of the type {part.get('type')!r}"
            tally.drop("conversations with a message that is neither text nor images", said)
            return None
    return {"role": role, "content": parts}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _parts(content: Any) -> list[Mapping[str, Any]]:
    """Return a content as parts; what is none has the type that it is of."""
    listed = content if isinstance(content, list) else [content]
    return [
        {"type": "text", "text": each}
        if isinstance(each, str)
        else each
        if isinstance(each, Mapping)
        else {"type": type(each).__name__}
        for each in listed
    ]


def _named(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a part says that its image is."""
    for key in _KEYS:
        value = part.get(key)
        if isinstance(value, Mapping):  # as OpenAI's messages have it
            value = value.get("url")
        if isinstance(value, str):
            yield value


def _file(part: Mapping[str, Any], folder: Path) -> Path | None:
    """Return the file of an image; None where the image is no local file."""
    named = next(_named(part), None)
    if named is None or "\0" in named:
        return None
    local = named.removeprefix("file://")
    return (
        None if "://" in local or local.startswith("data:") else folder / Path(local).expanduser()
    )
