"""A row of a data set → a document: text, or the messages of a conversation."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlcalib.common.errors import printable
from mlcalib.common.json_text import loads
from mlcalib.corpora._documents import Conversation, Document, Tally
from mlcalib.corpora._images import image_parts, message_with_images

CONVERSATIONS = ("messages", "conversations")
FIELDS = ("text", *CONVERSATIONS)
TOOLS = "tools"  # the field beside messages that holds what the assistant could call

_HALF = re.compile("[\ud800-\udfff]")
INVALID = "documents that are not valid Unicode"  # JSON can escape one half of a surrogate pair

_ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "reasoning")


def choose_field(names: Iterable[str], wanted: str | None, where: str) -> str:
    """Return the field that holds the document: the one wanted, or the first of ``FIELDS``.

    Raises:
        ValueError: there is none; says ``where``.
    """
    names = list(names)
    found = next((name for name in ([wanted] if wanted else FIELDS) if name in names), None)
    if found is None:
        expected = f"no field '{wanted}'" if wanted else f"no field '{FIELDS[0]}'"
        also = "" if wanted else " (nor messages or conversations; ?field=NAME reads another)"
        raise ValueError(
            f"{where} has {expected}; it has: {printable(', '.join(names)) or 'no field'}{also}."
        )
    return found


def read_row(
    row: Mapping[str, Any], wanted: str | None, tally: Tally, where: str
) -> Document | None:
    """Return the document that a row holds, or count why there is none and return None.

    Args:
        row: field → value.
        wanted: the field to read; None for the first of ``FIELDS`` that is not null.
        tally: counts the row, and what is left out.
        where: the row, in messages.
    """
    fields = [name for name in ([wanted] if wanted else FIELDS) if name in row]
    if not fields:
        tally.read += 1
        names = wanted or "text, messages or conversations"
        has = printable(", ".join(row)) or "no field"
        tally.drop(f"documents without {names}", f"{where}, has: {has}; ?field=NAME reads another")
        return None
    field = next((name for name in fields if row[name] is not None), fields[0])
    return read_value(row[field], field, tally, where, row.get(TOOLS))


def read_value(
    value: Any, field: str, tally: Tally, where: str, tools: Any = None
) -> Document | None:
    """Return a field's value as a document, or count why there is none and return None."""
    tally.read += 1
    if value is None:
        tally.drop(f"documents without {field}", where)
        return None
    if field in CONVERSATIONS and isinstance(value, str):
        value = _from_json(value)  # how tables without nested columns keep messages
    if isinstance(value, str):
        text = value.strip()
        if "\0" in text:
            tally.note("documents that hold null characters", where)
        if text and is_valid(text):
            return text
        tally.drop(INVALID if text else "blank documents", where)
        return None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        kind = type(value).__name__
        tally.drop(f"documents whose {field} is neither text nor messages", f"{where}: a {kind}")
        return None
    return read_conversation(value, tools, tally, where)


def read_conversation(
    messages: Sequence[Mapping[str, Any]], tools: Any, tally: Tally, where: str
) -> Conversation | None:
    """Return messages as chat templates take them, or count why they cannot be and return None.

    Speakers get the names that templates know (``developer`` is ``system``), text parts of a
    content are joined by newlines, reasoning parts become ``reasoning_content``. All else that is
    said of a message (``tool_calls``, ``reasoning_content``, ``name``, …) is kept. Where images are
    wanted (``Tally.images``) a conversation with some keeps its contents as parts.

    Args:
        messages: each with ``role`` and ``content``, or ``from`` and ``value``.
        tools: JSON schemas of the tools, as a list or as JSON; None for none.
        tally: counts what is left out.
        where: the conversation, in messages.
    """
    read = []
    has_images = tally.images is not None and any(map(image_parts, messages))
    for message in messages:
        speaker = message.get("role", message.get("from"))
        role = _SPEAKERS.get(str(speaker).lower(), str(speaker).lower())
        if role not in _ROLES:
            has = f"{speaker!r}"
            if speaker is None:
                has = f"a message with {', '.join(message) or 'no field'}"
            tally.drop("conversations with an unknown speaker", f"{where}: {printable(has)}")
            return None
        if has_images:
            found = message_with_images(message, role, tally, where)
            if found is None:
                return None
            read.append(found)
            continue
        found = _message(message, role)
        if found is None:
            has = f"{where}, of the {role}: {_content_kind(message)}"
            tally.drop("conversations with a message that is no text", has)
            return None
        read.append(found)
    if not has_images and not any(
        message["content"].strip() or "tool_calls" in message for message in read
    ):
        tally.drop("blank documents", where)
        return None
    offered = _from_json(tools) or None
    if not is_valid(json.dumps([read, offered], ensure_ascii=False, default=str)):
        tally.drop(INVALID, where)
        return None
    listed = offered if isinstance(offered, list) else None
    return Conversation(read, listed, has_images=has_images)


def is_valid(text: str) -> bool:
    """Return whether a text can be encoded: it holds no half of a surrogate pair."""
    return text.isascii() or _HALF.search(text) is None


def _message(message: Mapping[str, Any], role: str) -> dict[str, Any] | None:
    """Return a message with its content as text; None where it has other content."""
    content = message.get("content", message.get("value"))
    said = ("role", "content", "from", "value")
    # In Parquet a message has all fields that any has, null where it has none.
    rest = {key: value for key, value in message.items() if key not in said and value is not None}
    if isinstance(calls := rest.get("tool_calls"), list) and calls:
        rest["tool_calls"] = [_call(each) for each in calls]
        content = "" if content is None else content
    if isinstance(content, list):
        reasoning = [part for part in content if _kind(part) in _REASONING_PARTS]
        texts = [_part(part) for part in content if part not in reasoning]
        thoughts = [_part(part) for part in reasoning]
        if None in [*texts, *thoughts]:
            return None
        if thoughts:
            rest.setdefault("reasoning_content", "\n".join(map(str, thoughts)))
        content = "\n".join(map(str, texts))
    return {"role": role, "content": content, **rest} if isinstance(content, str) else None


def _content_kind(message: Mapping[str, Any]) -> str:
    """Say what a content is that is no text."""
    content = message.get("content", message.get("value"))
    kinds = (
        [_kind(part) for part in content if _part(part) is None]
        if isinstance(content, list)
        else []
    )
    return f"a part of the type {kinds[0]!r}" if kinds else f"a {type(content).__name__}"


def _kind(part: Any) -> Any:
    return part.get("type", "text") if isinstance(part, Mapping) else "text"


def _part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    kind = _kind(part)
    if not isinstance(part, Mapping) or kind not in (*_TEXT_PARTS, *_REASONING_PARTS):
        return None
    text = part.get("text")
    found = part.get(kind) if text is None else text
    return found if isinstance(found, str) else None


def _call(call: Any) -> Any:
    """Return a tool call with its arguments as an object, which templates of transformers take."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = _from_json(function.get("arguments"))
    return {**call, "function": {**function, "arguments": arguments}}


def _from_json(value: Any) -> Any:
    """Return what a JSON text says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except ValueError:
        return value
