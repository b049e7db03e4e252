"""Reads documents out of a folder of ``LANG/{calib,eval}.{txt,jsonl,parquet}``."""

from collections.abc import Iterator
from importlib.resources.abc import Traversable

from mlcalib.common.row_files import decode, file_rows
from mlcalib.corpora._documents import Document, Documents, Tally, left_out, shuffled
from mlcalib.corpora._rows import choose_field, read_value
from mlcalib.corpora.base import Split

KINDS = ("txt", "jsonl", "parquet")


def read_documents(
    root: Traversable,
    language: str,
    split: Split,
    seed: int | None = None,
    field: str | None = None,
) -> Documents:
    """Return the documents of one language and split, without surrounding white space.

    Of several files the first of .txt, .jsonl, .parquet is read. Blank documents are left out and
    counted.

    Args:
        root: the folder of the languages' folders.
        language: name of the folder.
        split: name of the file.
        seed: what the documents are shuffled with; None for the order of the file.
        field: of .jsonl and .parquet; None for the first of ``_rows.FIELDS`` that is there.

    Raises:
        FileNotFoundError: there is no folder for the language, or no file for the split.
        ValueError: when read: invalid UTF-8; a line that is no JSON object; no such field, or
            neither text nor messages in it; not a Parquet file; no documents.
    """
    if language not in (available := _languages(root)):
        raise FileNotFoundError(
            f"The corpus at '{root}' has no text in '{language}' (no folder "
            f"'{root.joinpath(language)}' with calib or eval text). It has: "
            f"{', '.join(available) or 'no language at all'}."
        )
    file = _split_file(root.joinpath(language), split)

    def read(tally: Tally) -> Iterator[Document]:
        found = [document for document in _documents(file, field, tally) if document is not None]
        if not found:
            counts = left_out(tally.read, tally.dropped)
            raise ValueError(
                f"'{file}' holds no documents{f' ({counts})' if counts else ''}; put one on each "
                "line or leave it out."
            )
        yield from found if seed is None else shuffled(found, seed, language)

    return Documents(read, {"file": str(file)})


def _languages(root: Traversable) -> list[str]:
    return sorted(item.name for item in root.iterdir() if item.is_dir() and _files(item))


def _files(folder: Traversable) -> list[str]:
    names = [f"{split}.{kind}" for split in ("calib", "eval") for kind in KINDS]
    return [name for name in names if folder.joinpath(name).is_file()]


def _split_file(folder: Traversable, split: Split) -> Traversable:
    names = _files(folder)
    found = [name for name in names if name.startswith(f"{split}.")]
    if not found:
        expected = " or ".join(f"'{split}.{kind}'" for kind in KINDS)
        raise FileNotFoundError(
            f"'{folder}' has no {split} text: {expected} was expected, but there is only "
            f"{', '.join(names)}."
        )
    return folder.joinpath(found[0])  # in the order of KINDS, never two of them


def _documents(file: Traversable, field: str | None, tally: Tally) -> Iterator[Document | None]:
    if file.name.endswith(".txt"):
        for text in _texts(decode(file)):
            yield read_value(text, "text", tally, str(file))
        return
    for where, row in file_rows(file, lambda names: [choose_field(names, field, str(file))]):
        name = choose_field(row, field, where)
        yield read_value(row[name], name, tally, where)


def _texts(text: str) -> list[str]:
    # Not splitlines: a form feed or U+2028 inside a document does not end its line.
    texts = text.split("\f" if "\f" in text else "\n")
    return texts if texts[-1].strip() else texts[:-1]  # what ends the last document starts none
