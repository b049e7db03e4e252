"""Reads documents out of a folder of ``LANG/{calib,eval}.{txt,jsonl,json,parquet}``."""

import re
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from mlcalib.common.row_files import file_rows, stem_and_kind
from mlcalib.common.text_files import LINE_END, parts_between, text_pieces
from mlcalib.corpora._documents import Document, Documents, Tally, left_out, shuffled
from mlcalib.corpora._rows import TOOLS, choose_field, read_row, read_value
from mlcalib.corpora.base import Split

KINDS = ("txt", "jsonl", "json", "parquet")
SPLITS = ("calib", "eval")

NEARLY_ALL = 0.9  # of a file's characters in one document is remarkable
_FORM_FEED = re.compile("\f")
_LONG = 1000  # characters, if it is no mere line
_ABOUT = ("readme", "license", "licence", "licenses")  # files that are about the text


class _Folder(NamedTuple):
    """The files of a language: those of each split, what is read first, and the others' names."""

    splits: dict[str, list[Traversable]]
    others: list[str]


def read_documents(
    root: Traversable,
    language: str,
    split: Split,
    seed: int | None = None,
    field: str | None = None,
) -> Documents:
    """Return the documents of one language and split, without surrounding white space.

    Of several files the first of .txt, .jsonl, .json, .parquet is read, a plain one before a
    compressed one (.gz, .zst); names may be in any case. The others are noted in the tally. What
    holds no document is left out and counted.

    Args:
        root: the folder of the languages' folders.
        language: name of the folder.
        split: name of the file.
        seed: what the documents are shuffled with; None for the order of the file.
        field: of .jsonl, .json and .parquet; None for the first of ``_rows.FIELDS`` that is there.

    Raises:
        FileNotFoundError: there is no folder for the language, or no file for the split.
        ValueError: when read: invalid UTF-8; a damaged compressed or Parquet file, or one without
            the column; no documents.
    """
    folders = {item.name: _folder(item) for item in root.iterdir() if item.is_dir()}
    available = sorted(name for name, folder in folders.items() if any(folder.splits.values()))
    if language not in available:
        others = [name for name in _names(root) if name not in available]
        inside = folders[language].others if language in folders else others
        unread = f" These files are not read: {', '.join(inside)}." if inside else ""
        raise FileNotFoundError(
            f"The corpus at '{root}' has no text in '{language}' (no folder "
            f"'{root.joinpath(language)}' with calib or eval text). It has: "
            f"{', '.join(available) or 'no language at all'}.{unread}"
        )
    file, unread_names = _split_file(root.joinpath(language), folders[language], split)

    def read(tally: Tally) -> Iterator[Document]:
        if unread_names:
            what = "files of the folder that are not read"
            tally.note(what, ", ".join(unread_names), len(unread_names))
        found = [document for document in _documents(file, field, tally) if document is not None]
        if not found:
            counts = left_out(tally.read, tally.dropped, tally.examples)
            raise ValueError(
                f"'{file}' holds no documents{f' ({counts})' if counts else ''}; "
                f"{'mend its rows, or give other text' if counts else 'put one on each line'}, or "
                "leave it out."
            )
        _note_nearly_all(found, file, tally)
        yield from found if seed is None else shuffled(found, seed, language)

    return Documents(read, {"file": str(file)})


def _folder(folder: Traversable) -> _Folder:
    splits: dict[str, list[Traversable]] = {split: [] for split in SPLITS}
    for name in sorted(_names(folder), key=lambda name: (len(name), name)):
        stem, kind = stem_and_kind(name)
        if stem in splits and kind in KINDS and folder.joinpath(name).is_file():
            splits[stem].append(folder.joinpath(name))
    for files in splits.values():  # stable: a plain file stays before a compressed one
        files.sort(key=lambda file: KINDS.index(stem_and_kind(file.name)[1]))
    known = {file.name for files in splits.values() for file in files}
    return _Folder(splits, [name for name in _names(folder) if name not in known])


def _names(folder: Traversable) -> list[str]:
    """Return what a folder holds, but for hidden files and those that are about the text."""
    names = sorted(item.name for item in folder.iterdir())
    about = [name for name in names if name.lower().partition(".")[0] in _ABOUT]
    return [name for name in names if name not in about and not name.startswith((".", "_"))]


def _split_file(
    where: Traversable, folder: _Folder, split: Split
) -> tuple[Traversable, Sequence[str]]:
    """Return the file of a split that is read, and the names of those that are not."""
    found = folder.splits[split]
    if not found:
        expected = " or ".join(f"'{split}.{kind}'" for kind in KINDS)
        there = [file.name for files in folder.splits.values() for file in files]
        raise FileNotFoundError(
            f"'{where}' has no {split} text: {expected} was expected, but there is only "
            f"{', '.join([*there, *folder.others])}."
        )
    return found[0], [*(file.name for file in found[1:]), *folder.others]


def _documents(file: Traversable, field: str | None, tally: Tally) -> Iterator[Document | None]:
    if stem_and_kind(file.name)[1] == "txt":
        for number, text in enumerate(_texts(file), start=1):
            # The mark is in the middle of files that were put end to end.
            document = text.strip().lstrip("\ufeff")
            yield read_value(document, "text", tally, f"{file}, document {number}")
        return

    def columns(names: Sequence[str]) -> Sequence[str]:
        chosen = choose_field(names, field, str(file))
        return [chosen, TOOLS] if TOOLS in names and chosen != TOOLS else [chosen]

    def refused(what: str, example: str) -> None:
        tally.read += 1
        tally.drop(what, example)

    if tally.images is not None:
        tally.images = Path(str(file)).parent
    for where, row in file_rows(file, columns, refused):
        yield read_row(row, field, tally, where)


def _texts(file: Traversable) -> Iterator[str]:
    """Give the documents of a .txt file: between form feeds where there are any, or else lines."""
    last = ""
    ends = _FORM_FEED if any("\f" in piece for piece in text_pieces(file)) else LINE_END
    for number, piece in enumerate(parts_between(file, ends)):
        if number:
            yield last
        last = piece
    if last.strip():  # what ends the last document starts none
        yield last


def _note_nearly_all(documents: Sequence[Document], file: Traversable, tally: Tally) -> None:
    sizes = [_size(document) for document in documents]
    longest = max(sizes)
    if longest <= max(_LONG, NEARLY_ALL * sum(sizes)):
        return
    document = documents[sizes.index(longest)]
    example = f"{file}: {longest:,} of {sum(sizes):,} characters"
    if isinstance(document, str) and stem_and_kind(file.name)[1] == "txt" and "\n" in document:
        lines = len(LINE_END.findall(document)) + 1
        example += f", {lines:,} lines, for form feeds separate documents where there are any"
    tally.note(f"documents that hold over {NEARLY_ALL:.0%} of the text", example)


def _size(document: Document) -> int:
    if isinstance(document, str):
        return len(document)
    return sum(len(str(message["content"])) for message in document)
