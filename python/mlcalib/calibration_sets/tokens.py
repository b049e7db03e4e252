"""Turns documents into tokens, in one way for calibration and evaluation."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mlcalib.corpora import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONG = 65536
"""Characters of a document that is tokenised as far as it is needed, and no further."""

_MARGIN = 1024  # characters before a cut that tokens of the text after it do not reach


class Stream(NamedTuple):
    """Documents, joined to one sequence of tokens.

    Attributes:
        ids: [n] int64, the token ids.
        byte_counts: [n] int64, the UTF-8 bytes of text that each token adds. A character that is
            made of several tokens counts at the first of them. A character that no token covers
            (white space that the tokenizer drops) counts at the next token, or at the last one of
            its document. Special tokens add 0.
        document: [n] int64, the index of the document that each token belongs to; a separator
            belongs to the document before it.
        begin: the ids that each window of the text begins with; see ``begin_ids``.
    """

    ids: Tensor
    byte_counts: Tensor
    document: Tensor
    begin: tuple[int, ...] = ()


class Encoded(NamedTuple):
    """One document.

    Attributes:
        text: its text.
        ids: token ids.
        offsets: the characters [start, end) that each token covers.
        inputs: what the model is given of its images beside the ids; None where it has none.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    inputs: dict[str, Tensor] | None = None


def stream(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Iterable[str],
    separator: str | None = None,
    tokens: int | None = None,
    window_bos: bool = True,
) -> Stream:
    """Tokenise documents in the order given, and join them.

    The byte counts add up to the bytes of the documents and of separators that are text. Bits per
    byte divides by them.

    Args:
        tokenizer: a fast tokenizer.
        documents: the texts; none blank.
        separator: see ``encode``.
        tokens: stop after the document with which this number of tokens is reached, or inside it
            if it is long (see ``encode``). None takes all documents.
        window_bos: whether ``begin`` is what the tokenizer begins a text with, or nothing.

    Raises:
        TypeError: ``documents`` is one string.
        ValueError: the tokenizer is not fast, lacks the separator, or gives ids that it has no
            entry for; there are no documents, or a blank one.
    """
    if isinstance(documents, Sequence):
        check_documents(documents, "The text")
    ids: list[int] = []
    counts: list[int] = []
    owners: list[int] = []
    for index, encoded in enumerate(encode(tokenizer, documents, separator, tokens)):
        ids += encoded.ids
        counts += _byte_counts(encoded)
        owners += [index] * len(encoded.ids)
        if tokens is not None and len(ids) >= tokens:
            break
    begin = begin_ids(tokenizer) if window_bos else ()
    columns = [torch.tensor(values, dtype=torch.int64) for values in (ids, counts, owners)]
    return Stream(columns[0], columns[1], columns[2], begin)


def check_documents(documents: Sequence[Document], what: str) -> None:
    """Refuse what would be tokenised without complaint but cannot be meant."""
    if isinstance(documents, str):
        raise TypeError(f"{what} is one string; give a list of documents, such as [text].")
    if not documents:
        raise ValueError(f"{what} has no documents; give one or more.")
    for index, document in enumerate(documents):
        if isinstance(document, str) and not document.strip():
            raise ValueError(f"{what} has a blank document (index {index}); leave it out.")


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Iterable[str | Encoded],
    separator: str | None,
    tokens: int | None = None,
) -> Iterator[Encoded]:
    r"""Tokenise documents one by one, as they are asked for.

    A document of more than ``LONG`` characters is not tokenised to its end where its beginning
    holds all tokens that are wanted: it is then cut off after these, without a separator.

    Args:
        tokenizer: a fast tokenizer.
        documents: the texts; those that are encoded stay as they are.
        separator: None to keep what the tokenizer itself adds to a document
            (``add_special_tokens``). Otherwise it adds nothing, and after each document comes
            ``eos`` or ``bos`` (the token of that name), or any other text, such as ``\n\n``;
            nothing where that is the empty string.
        tokens: how many are wanted of all documents together; None for all there are.

    Yields:
        The text, ids and offsets of each document with its separator.

    Raises:
        ValueError: the tokenizer is not fast, lacks the separator, or gives an id beyond its size.
    """
    tail = _separator(tokenizer, separator)
    size = len(tokenizer)
    left = tokens
    for document in documents:
        if isinstance(document, Encoded):
            left = None if left is None else left - len(document.ids)
            yield document
            continue
        encoded = _beginning(tokenizer, document, left, add_special_tokens=separator is None)
        if encoded is None:
            body = _tokenise(tokenizer, document, add_special_tokens=separator is None)
            # Text that separates goes on where the document ends, so its offsets do too.
            end = len(document)
            offsets = body.offsets + [(start + end, stop + end) for start, stop in tail.offsets]
            encoded = Encoded(document + tail.text, body.ids + tail.ids, offsets)
        left = None if left is None else left - len(encoded.ids)
        if encoded.ids and max(encoded.ids) >= size:
            raise ValueError(
                f"The tokenizer gives the id {max(encoded.ids)} but has only {size} entries; it is "
                "damaged, or tokens were added to it after it was saved."
            )
        yield encoded


def describe_separator(tokenizer: "PreTrainedTokenizerBase", separator: str | None) -> str:
    """Return in words what is put between documents.

    Raises:
        ValueError: the tokenizer is not fast, or lacks the separator.
    """
    if separator == "":
        return "none: documents follow each other directly"
    if separator is not None:
        ids = _separator(tokenizer, separator).ids
        if separator in ("bos", "eos"):
            return f"{separator} {tokenizer.convert_ids_to_tokens(ids[0])} after each document"
        return f"text {separator!r} ({len(ids)} tokens) after each document"
    start, end = _around(tokenizer)
    before = [_special_name(tokenizer, i, "bos") for i in start]
    after = [_special_name(tokenizer, i, "eos") for i in end]
    parts = [f"{' '.join(before)} before each document"] if before else []
    parts += [f"{' '.join(after)} after each document"] if after else []
    return ", ".join(parts) or (
        "none: the tokenizer adds nothing between documents; set --separator"
    )


def begin_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the special tokens that the tokenizer begins a text with: BOS, where it adds one.

    A model that was trained with it may be lost in a window that lacks it.

    Raises:
        ValueError: the tokenizer is not fast.
    """
    return _around(tokenizer)[0]


def describe_windows(tokenizer: "PreTrainedTokenizerBase", window_bos: bool = True) -> str:
    """Say what each window begins with, e.g. ``bos <s>``; empty where that is nothing.

    Raises:
        ValueError: the tokenizer is not fast.
    """
    found = begin_ids(tokenizer) if window_bos else ()
    return " ".join(_special_name(tokenizer, token, "bos") for token in found)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the sha256 (hex) of everything that decides how a fast tokenizer turns text into ids.

    Raises:
        ValueError: the tokenizer is not fast.
    """
    _check_fast(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by the last call, not by the tokenizer; no call here truncates or pads.
    del state["truncation"], state["padding"]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _around(
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    _check_fast(tokenizer)
    probe: Any = tokenizer("a", return_special_tokens_mask=True)
    ids, special = tuple(probe["input_ids"]), list(probe["special_tokens_mask"])
    if 0 not in special:  # the tokenizer drops the text
        return (), ()
    return ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]


def _check_fast(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so it does not say which text a "
            "token covers. Load a fast one (AutoTokenizer, from a tokenizer.json), or give token "
            "ids to mlcalib.calibration_sets.from_ids."
        )


def _tokenise(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, add_special_tokens: bool
) -> Encoded:
    _check_fast(tokenizer)
    # verbose=False: documents may be longer than the model's context, for they are cut into
    # sequences afterwards.
    batch: Any = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return Encoded(text, batch["input_ids"], batch["offset_mapping"])


def _beginning(
    tokenizer: "PreTrainedTokenizerBase",
    document: str,
    wanted: int | None,
    *,
    add_special_tokens: bool,
) -> Encoded | None:
    """Return the first tokens of a long document, at least those wanted, as they are in all of it.

    None where the document is not long, or has no more tokens than that.
    """
    size = LONG
    while wanted is not None and size < len(document):
        part = _tokenise(tokenizer, document[:size], add_special_tokens=add_special_tokens)
        # Where text is cut off tokens are others; what is well before that is as it was.
        safe = (i for i, (_, stop) in enumerate(part.offsets) if stop > size - _MARGIN)
        count = next(safe, 0)
        if count >= wanted:
            end = part.offsets[count - 1][1]
            return Encoded(document[:end], part.ids[:count], part.offsets[:count])
        size *= 2
    return None


def _separator(tokenizer: "PreTrainedTokenizerBase", separator: str | None) -> Encoded:
    if separator in ("bos", "eos"):
        token = tokenizer.bos_token_id if separator == "bos" else tokenizer.eos_token_id
        if token is None:
            raise ValueError(
                f"The separator '{separator}' was asked for, but the tokenizer has no {separator} "
                "token; give a text instead."
            )
        return Encoded("", [token], [(0, 0)])
    encoded = _tokenise(tokenizer, separator or "", add_special_tokens=False)
    if separator and not encoded.ids:
        raise ValueError(f"The tokenizer drops the separator {separator!r}; give another text.")
    return encoded


def _special_name(tokenizer: "PreTrainedTokenizerBase", token: int, likely: str) -> str:
    # One token can be both (GPT-2's <|endoftext|>): where it stands says what it is.
    named = {tokenizer.eos_token_id: "eos", tokenizer.bos_token_id: "bos"}
    if token == getattr(tokenizer, f"{likely}_token_id"):
        named[token] = likely
    return f"{named.get(token, '')} {tokenizer.convert_ids_to_tokens(token)}".strip()


def _byte_counts(encoded: Encoded) -> list[int]:
    counts = []
    done = 0
    last = 0
    for index, (start, stop) in enumerate(encoded.offsets):
        if stop == start:  # a special token
            counts.append(0)
            continue
        counts.append(len(encoded.text[done:stop].encode()))
        done = max(done, stop)
        last = index
    if counts:
        counts[last] += len(encoded.text[done:].encode())
    return counts
