"""Text from a folder of files."""

from pathlib import Path

from mlcalib.corpora._documents import Documents
from mlcalib.corpora._reader import read_documents
from mlcalib.corpora.base import Split, registry


@registry.register
class FilesCorpus:
    """``files:PATH``: a folder of ``LANG/{calib,eval}.txt``, ``.jsonl``, ``.json`` or ``.parquet``.

    Names may be in any case and may end in ``.gz`` or ``.zst``. In a ``.txt`` file each line is a
    document. If the file contains form feeds, the documents are the texts between them. In
    ``.jsonl`` a document is a field of the JSON object on each line, in ``.json`` of each object of
    an array (or on each line), and in ``.parquet`` (which needs pyarrow) it is a value of a column.
    This field or column is ``text``, or else ``messages`` or ``conversations``, a list of messages
    with ``role`` and ``content`` (or ``from`` and ``value``). A field ``tools`` beside messages is
    passed to the chat template.

    If a split has several files, the first kind of these four is read. The names of all files that
    are not read are reported, except README and LICENSE. Rows that contain no document are counted,
    and the first example is reported.

    Args:
        argument: the folder.
        field: another field or column to read.

    Raises:
        ValueError: no folder was given.
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: the path is a file.
    """

    def __init__(self, argument: str, field: str | None = None) -> None:
        if not argument:
            raise ValueError("The corpus 'files' needs a folder; write 'files:PATH'.")
        self.name = f"files:{argument}" + (f"?field={field}" if field else "")
        self._field = field
        self._root = Path(argument).expanduser()
        if not self._root.exists():
            raise FileNotFoundError(f"The corpus folder '{self._root}' does not exist.")
        if not self._root.is_dir():
            raise NotADirectoryError(
                f"The corpus '{self._root}' is a file; give the folder that holds a folder for "
                "each language."
            )

    def documents(self, language: str, split: Split, seed: int | None = None) -> Documents:
        """See ``Corpus.documents``."""
        return read_documents(self._root, language, split, seed, self._field)
