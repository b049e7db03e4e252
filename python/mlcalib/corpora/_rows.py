"""A row of a data set → a document: text, or the messages of a conversation."""

from collections.abc import Iterable, Mapping
from typing import Any

from mlcalib.corpora._documents import Conversation, Document, Tally

FIELDS = ("text", "messages", "conversations")

# ShareGPT calls the speaker of a message ``from`` and its text ``value``.
_SPEAKERS = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant", "tool")


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
        raise ValueError(f"{where} has {expected}; it has: {', '.join(names) or 'no field'}{also}.")
    return found


def read_value(value: Any, field: str, tally: Tally, where: str) -> Document | None:
    """Return a field's value as a document, or count why there is none and return None.

    Counted are null, blank text, and conversations that no chat template could take.

    Raises:
        ValueError: the value is neither text nor a list of messages; says ``where``.
    """
    tally.read += 1
    if value is None:
        tally.dropped[f"documents without {field}"] += 1
        return None
    if isinstance(value, str):
        text = _valid(value, field, where).strip()
        if not text:
            tally.dropped["blank documents"] += 1
        return text or None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(
            f"{where}: '{field}' is a {type(value).__name__}; a string or a list of messages was "
            "expected."
        )
    return _conversation(value, field, tally, where)


def _conversation(
    messages: list[Mapping[str, Any]], field: str, tally: Tally, where: str
) -> Conversation | None:
    conversation: Conversation = []
    for message in messages:
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if role is None:
            raise ValueError(
                f"{where}: a message in '{field}' has: {', '.join(message) or 'no field'}; role "
                "and content, or from and value, were expected."
            )
        role = _SPEAKERS.get(role, role)
        if role not in _ROLES:
            tally.dropped["conversations with an unknown speaker"] += 1
            return None
        if not isinstance(content, str):
            tally.dropped["conversations with a message that is no text"] += 1
            return None
        conversation.append({"role": role, "content": _valid(content, field, where)})
    if not any(message["content"].strip() for message in conversation):
        tally.dropped["blank documents"] += 1
        return None
    return conversation


def _valid(text: str, field: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape one half of a surrogate pair
        raise ValueError(f"{where}: '{field}' is not valid Unicode: {error}.") from error
    return text
