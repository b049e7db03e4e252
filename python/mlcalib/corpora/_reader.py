"""Reads documents out of a folder of ``LANG/{calib,eval}.{txt,jsonl}``."""

import json
from importlib.resources.abc import Traversable

from mlcalib.corpora.base import Split


def read_documents(root: Traversable, language: str, split: Split) -> list[str]:
    """Return the documents of one language and split, without surrounding white space.

    In a ``.txt`` file a document is a line or, where the file holds form feeds, the text between
    them; in a ``.jsonl`` file, which is read where there is no ``.txt``, it is the field ``text``
    of the object on each line. Blank documents are skipped.

    Raises:
        FileNotFoundError: there is no folder for the language, or no file for the split.
        ValueError: invalid UTF-8; a line that is no JSON object with a
            ``text``; no documents.
    """
    if language not in (available := _languages(root)):
        raise FileNotFoundError(
            f"The corpus at '{root}' has no text in '{language}' (no folder "
            f"'{root.joinpath(language)}' with calib or eval text). It has: "
            f"{', '.join(available) or 'no language at all'}."
        )
    file = _split_file(root.joinpath(language), split)
    text = _decode(file)
    documents = _json_documents(file, text) if file.name.endswith(".jsonl") else _documents(text)
    documents = [document for document in map(str.strip, documents) if document]
    if not documents:
        raise ValueError(f"'{file}' holds no documents; put one on each line or leave it out.")
    return documents


def _languages(root: Traversable) -> list[str]:
    return sorted(item.name for item in root.iterdir() if item.is_dir() and _files(item))


def _files(folder: Traversable) -> list[str]:
    names = [f"{split}.{kind}" for split in ("calib", "eval") for kind in ("txt", "jsonl")]
    return [name for name in names if folder.joinpath(name).is_file()]


def _split_file(folder: Traversable, split: Split) -> Traversable:
    names = _files(folder)
    found = [name for name in names if name.startswith(f"{split}.")]
    if not found:
        raise FileNotFoundError(
            f"'{folder}' has no {split} text: '{split}.txt' or '{split}.jsonl' was expected, but "
            f"there is only {', '.join(names)}."
        )
    return folder.joinpath(found[0])  # .txt before .jsonl, never both


def _decode(file: Traversable) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"'{file}' is not valid UTF-8: byte 0x{content[error.start]:02x} on line {line} (byte "
            f"{error.start} of the file); convert the file to UTF-8."
        ) from error


def _documents(text: str) -> list[str]:
    # Not splitlines: a form feed or U+2028 inside a document does not end its line.
    return text.split("\f" if "\f" in text else "\n")


def _json_documents(file: Traversable, text: str) -> list[str]:
    lines = enumerate(text.split("\n"), start=1)
    return [_json_document(file, number, line) for number, line in lines if line.strip()]


def _json_document(file: Traversable, number: int, line: str) -> str:
    where = f"'{file}', line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a JSON {type(row).__name__}; an object was expected.")
    if "text" not in row:
        raise ValueError(f"{where} has no field 'text'; it has: {', '.join(row) or 'no field'}.")
    text = row["text"]
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' is a {type(text).__name__}; a string was expected.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape one half of a surrogate pair
        raise ValueError(f"{where}: 'text' is not valid Unicode: {error}.") from error
    return text
