"""Text that is streamed from a data set of the Hugging Face hub."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mlcalib.common.optional import optional
from mlcalib.corpora._documents import Document, Documents, Tally, generator, window_shuffled
from mlcalib.corpora._rows import choose_field, read_row
from mlcalib.corpora.base import Split, registry
from mlcalib.languages import language as find_language

_log = logging.getLogger(__name__)

# Where a data set has no split for evaluation, one document in so many is kept for it.
HELD_OUT = 10
COUNTED = "documents of the other split"


@registry.register
class HubCorpus:
    """``hub:NAME``: a data set of the Hugging Face hub, or a folder with its layout; streamed.

    The configuration of a language is the one whose name is the code of the language in mlcalib,
    FLORES-200, mC4 or Wikipedia, alone (``sw``, ``swh_Latn``) or after a date (``20231101.sw``).

    Calibration reads the split ``train``, and evaluation ``validation`` or else ``test``. If both
    would read the same split, the sha256 of a document's text decides: one document in ten is for
    evaluation, and the others are for calibration. So copies of a document are never in both.

    Files (and the row groups of Parquet files) are read in a random order that depends on the seed,
    and their rows are shuffled within a window. No more is downloaded than the window and the token
    budget need. All files are those of one commit, which is recorded. This needs the package
    datasets.

    Args:
        argument: the data set's name, ``OWNER/NAME``, or a folder.
        config: the name of the configuration, if it has another form; ``{}`` in it stands for the
            code of the language, e.g. ``2024.{}``.
        field: the column to read; by default that of ``files:PATH``.
        revision: branch, tag or commit; the default is the newest commit.
        calib: the split to calibrate on.
        eval: the split to evaluate on.

    Raises:
        ValueError: no data set was given.
    """

    codes: ClassVar[tuple[str, ...]] = ("code", "flores", "mc4", "wikipedia")
    default: ClassVar[str] = ""

    def __init__(
        self,
        argument: str,
        config: str | None = None,
        field: str | None = None,
        revision: str | None = None,
        calib: str | None = None,
        eval: str | None = None,  # noqa: A002 - what users write
    ) -> None:
        self._repository = argument or self.default
        if not self._repository:
            raise ValueError("The corpus 'hub' needs a data set; write 'hub:OWNER/NAME'.")
        folder = Path(self._repository).expanduser()
        self._local = folder.is_dir()
        if not self._local and self._repository.startswith((".", "/", "~")):
            raise FileNotFoundError(f"The data set folder '{folder}' does not exist.")
        self._repository = str(folder) if self._local else self._repository
        self._config, self._field = config, field
        self._revision = revision
        self._splits = {"calib": calib, "eval": eval}
        self._place = self._repository  # what is read: the data set, or its copy in the cache
        self._commit: str | None = None
        self._configs: list[str] = []
        self.name = f"hub:{self._repository}"

    def documents(self, language: str, split: Split, seed: int | None = None) -> Documents:
        """See ``Corpus.documents``."""
        datasets = optional("datasets", "hub", f"The corpus '{self.name}'")
        self._look_up(datasets)
        config = self._find_config(language)
        streams = datasets.load_dataset(self._place, config, streaming=True, revision=self._reading)
        chosen = self._choose_splits(streams)
        shared = chosen["calib"] == chosen["eval"]
        stream = streams[chosen[split]]

        def read(tally: Tally) -> Iterator[Document]:
            draw = None if seed is None else generator(seed, language)
            found = self._read(stream, f"{self.name}, {config}", draw, tally)
            kept = _one_side(found, split, tally) if shared else found
            return kept if draw is None else window_shuffled(kept, draw)

        origin = {
            "dataset": self._repository,
            "commit": self._commit,
            "config": config,
            "split": chosen[split],
            "shared_with_other_split": shared,
        }
        return Documents(read, origin)

    def _look_up(self, datasets: Any) -> None:
        """Find the commit that everything is read from, and its configurations."""
        if self._configs:
            return
        if not self._local:
            self._commit = self._find_commit()
        elif self._revision is not None:
            raise ValueError(
                f"The data set '{self._repository}' is a folder, which has no revision; leave "
                "?revision= out."
            )
        self._configs = datasets.get_dataset_config_names(self._place, revision=self._reading)

    @property
    def _reading(self) -> str | None:
        """The commit to ask the hub for; None where a folder is read."""
        return self._commit if self._place == self._repository else None

    def _find_commit(self) -> str | None:
        """Return the newest commit; that of the copy in the cache where the hub is out of reach.

        Raises:
            FileNotFoundError: there is no such copy either.
        """
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # for downstream

        try:
            found = HfApi().dataset_info(self._repository, revision=self._revision).sha
            return None if found is None else str(found)
        except (ConnectionError, httpx.TransportError) as error:
            try:
                folder = snapshot_download(
                    self._repository,
                    repo_type="dataset",
                    revision=self._revision,
                    local_files_only=True,
                )
            except LocalEntryNotFoundError:
                raise FileNotFoundError(
                    f"The data set '{self._repository}' is not in the hub's cache on this machine, "
                    f"and the hub cannot be reached ({error}). Give a folder with text "
                    "(files:PATH), or fetch it where there is a network: hf download --repo-type "
                    f"dataset {self._repository}."
                ) from error
            _log.warning("the hub cannot be reached: %s is read from its cache", self.name)
            self._place = folder
            return Path(folder).name

    def _find_config(self, language: str) -> str:
        """Return the configuration of a language.

        Raises:
            FileNotFoundError: there is none.
            ValueError: there are several, from different dates.
        """
        entry = find_language(language)
        codes = [code for attribute in self.codes if (code := getattr(entry, attribute))]
        for code in dict.fromkeys(codes):
            wanted = self._config.replace("{}", code) if self._config else code
            if wanted in self._configs:
                return wanted
            if self._config:
                continue
            dated = [name for name in self._configs if name.partition(".")[2] == code]
            if len(dated) > 1:
                raise ValueError(
                    f"The data set '{self._repository}' has several configurations for "
                    f"'{language}': {', '.join(dated)}; choose with ?config=, e.g. "
                    f"?config={dated[-1].removesuffix(code)}{{}}."
                )
            if dated:
                return dated[0]
        tried = f"called {self._config or ' or '.join(dict.fromkeys(codes))}" if codes else "known"
        raise FileNotFoundError(
            f"The data set '{self._repository}' has no text in '{language}' (no configuration "
            f"{tried}). It has: {', '.join(self._configs)}. If one of these is it, say "
            "?config=NAME."
        )

    def _choose_splits(self, streams: Mapping[str, Any]) -> dict[str, str]:
        calib = self._splits["calib"] or "train"
        other = (name for name in ("validation", "test") if name in streams and name != calib)
        chosen = {"calib": calib, "eval": self._splits["eval"] or next(other, calib)}
        for use, name in chosen.items():
            if name not in streams:
                raise FileNotFoundError(
                    f"The data set '{self._repository}' has no split '{name}'; it has: "
                    f"{', '.join(streams)}. Choose one with ?{use}=."
                )
        return chosen

    def _read(
        self, stream: Any, where: str, draw: Callable[[], float] | None, tally: Tally
    ) -> Iterator[Document]:
        checked = False
        for row in stream if draw is None else _in_random_parts(stream, draw):
            checked = checked or bool(choose_field(row, self._field, where))
            document = read_row(row, self._field, tally, where)
            if document is not None:
                yield document


def _in_random_parts(stream: Any, draw: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Read the files in random order and, where they are Parquet, each file's row groups.

    A data set may be sorted (Wikipedia: by the age of the article), so its beginning is no sample.
    """
    for file in _random_shards(stream, draw):
        for part in _random_shards(file.reshard(), draw):
            yield from part


def _random_shards(stream: Any, draw: Callable[[], float]) -> Iterator[Any]:
    count = stream.num_shards
    keys = [draw() for _ in range(count)]
    for index in sorted(range(count), key=keys.__getitem__):
        yield stream.shard(count, index)


def _one_side(documents: Iterator[Document], split: Split, tally: Tally) -> Iterator[Document]:
    for document in documents:
        text = document if isinstance(document, str) else _said(document)
        held_out = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % HELD_OUT == 0
        if held_out == (split == "eval"):
            yield document
        else:
            tally.dropped[COUNTED] += 1


def _said(conversation: list[dict[str, Any]]) -> str:
    said = [{"role": each["role"], "content": each["content"]} for each in conversation]
    return json.dumps(said, ensure_ascii=False)
