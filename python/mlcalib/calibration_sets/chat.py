"""Turns conversations into text with a chat template."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib.corpora import INVALID, Document, Tally, is_valid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DESCRIPTION = "none: the chat template says where a conversation begins and ends"


def find_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: bool | str | Path
) -> str | None:
    """Return the chat template (Jinja) that was asked for, or None if none was.

    Args:
        tokenizer: the tokenizer, which may have one template or several with names.
        chat_template: False for none; True for the template of the tokenizer; the name of one of
            its templates; a template itself; or the path of a file with one.

    Raises:
        ValueError: the tokenizer has no template, or the file holds no text.
        FileNotFoundError: the file does not exist.
    """
    if chat_template is False:
        return None
    if isinstance(chat_template, Path):
        try:
            return chat_template.expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"The chat template {chat_template} is no text in UTF-8 ({error.reason} at byte "
                f"{error.start}); give the file of a Jinja template."
            ) from error
    if chat_template is True and not tokenizer.chat_template:
        other = Path(tokenizer.name_or_path, "chat_template.json")
        what = f"{other} is a processor's" if other.is_file() else "is this a base model?"
        raise ValueError(
            f"The tokenizer has no chat template ({what}); give one with --chat-template-file FILE "
            "(chat_template=Path(FILE)), a file with the template itself, or calibrate on plain "
            "text."
        )
    return str(tokenizer.get_chat_template(None if chat_template is True else chat_template))


def fingerprint(template: str | None) -> str | None:
    """Return the sha256 of a chat template, for the record."""
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


def render(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Iterable[Document],
    template: str | None,
    what: str,
    tally: Tally,
) -> Iterator[str]:
    """Yield the text of documents; conversations become text by the template.

    A conversation that the template refuses (because roles do not alternate, or because of a system
    message) or fails on is left out and counted, and so is text with half of a surrogate pair. A
    conversation is noted if the template does not write each of its messages as it stands.

    Args:
        tokenizer: has the special tokens that the template writes.
        documents: all text, without a template, or all conversations, with one.
        template: see ``find_template``.
        what: what the documents are called in messages.
        tally: where what is left out is counted.

    Raises:
        ValueError: conversations without a template, or text with one; the template is not valid
            Jinja.
    """
    for document in documents:
        if isinstance(document, str):
            if template is not None:
                raise ValueError(
                    f"{what} is plain, but a chat template takes conversations (a field 'messages' "
                    "or 'conversations'; ?field=NAME chooses a field); give such, or leave "
                    "--chat-template (chat_template=) out."
                )
            if is_valid(document):
                yield document
            else:
                tally.drop(INVALID, what)
            continue
        if template is None:
            raise ValueError(
                f"{what} consists of conversations, which need a chat template to become text; "
                "pass --chat-template (chat_template=True), or choose a field of plain text "
                "(?field=)."
            )
        text = _written(tokenizer, document, template, tally)
        if text is not None:
            yield text


def _written(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: list[dict[str, Any]],
    template: str,
    tally: Tally,
) -> str | None:
    """Return the text of a conversation, or count why there is none and return None."""
    from jinja2 import TemplateSyntaxError

    try:
        text = tokenizer.apply_chat_template(
            conversation,
            tools=getattr(conversation, "tools", None),
            chat_template=template,
            tokenize=False,
        )
    except TemplateSyntaxError as error:
        raise ValueError(
            f"The chat template is not valid Jinja (line {error.lineno}: {error.message}); "
            "mend it, or check that it is the file that was meant."
        ) from error
    except Exception as error:  # a template is a program, and may fail as one
        reason = f"{type(error).__name__}: {error}"
        tally.drop("conversations that the chat template refuses", reason)
        return None
    if not isinstance(text, str) or not text.strip():
        tally.drop("conversations that the chat template makes blank", f"{conversation[0]}")
        return None
    for message in conversation:
        if message["content"].strip() not in text:
            what = "conversations of which the chat template changes or leaves out a message"
            tally.note(what, f"first: of the {message['role']}")
            break
    return text
