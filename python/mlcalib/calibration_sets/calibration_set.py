"""The calibration set: sequences of token ids per language, and where they come from."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mlcalib.corpora import left_out, notes, said_of
from mlcalib.notebook import html

REPEATED = 0.1  # of a language's documents; more is warned of
OWN_SCRIPT = 0.5  # of a language's letters; less is warned of


@dataclass(frozen=True)
class LanguageReport:
    """How many tokens of a language were asked for, and how many its text has.

    Attributes:
        asked: the tokens of the language by its share of the budget.
        got: the tokens that count. They are fewer than asked only if that was allowed.
        sequences: the sequences that these tokens fill; the last one may be filled in part.
        documents: the documents that these tokens come from.
        characters_per_token: the average over these documents; None if token ids were given.
        cut: the tokens at the end of the last document that do not count. Of a long document, which
            is not tokenised to its end, only those that were made.
        read: the documents that were read from the source. A source that is shuffled reads more
            than are used.
        dropped: reason for leaving documents out → how many, e.g. ``blank documents`` → 3.
        origin: where the documents come from: a file, a data set with its commit, ….
        repeated: the documents whose text is that of another one before them.
        own_script: the share of the letters of these documents that belong to the script of the
            language. None if the language has no script, the text has no letters, or token ids were
            given.
        noted: what else is remarkable about what was read → how many.
        examples: what was left out or is remarkable → its first example.
    """

    asked: int
    got: int
    sequences: int
    documents: int
    characters_per_token: float | None
    cut: int
    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    repeated: int = 0
    own_script: float | None = None
    noted: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle, of before there were all fields too."""
        self.__init__(**state)  # type: ignore[misc]  # frozen: this is how fields are set

    @property
    def warnings(self) -> list[str]:
        """What makes this text doubtful: repeats, little of the language's script, and notes."""
        found = notes(self.noted, self.examples)
        if self.repeated > REPEATED * self.documents:
            found.append(
                f"{self.repeated:,} of {self.documents:,} documents repeat another (more than "
                f"{REPEATED:.0%}): the text is less than it seems"
            )
        if self.own_script is not None and self.own_script < OWN_SCRIPT:
            found.append(
                f"{self.own_script:.1%} of the letters are of the language's script (less than "
                f"{OWN_SCRIPT:.0%}): is this text in the language?"
            )
        return found


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """The token ids that a model is calibrated on, per language.

    Attributes:
        ids: language → [n, seq_len] int64, on the CPU.
        seq_len: the number of tokens of a sequence.
        seed: the seed with which documents were shuffled; None for token ids, which are not
            shuffled.
        set_name: the name of the set of languages.
        corpus: the name of the corpus.
        separator: what is put between documents, in words.
        tokenizer: the fingerprint of the tokenizer.
        report: language → what was asked for and found.
        arguments: the arguments with which ``mlcalib.calibration`` makes this set again, in JSON
            types. Empty if text, ids, a chat template or a tokenizer without a name were given as
            objects.
        chat_template: the sha256 of the chat template; None if there were no conversations.
        weights: language → the weight of its statistics in the mixture; 1 if it is not there.
        windows: what every sequence begins with, in words, e.g. ``bos <s>``; empty for nothing.
        inputs: language → number of a sequence with images → what the model is given beside its
            ids, such as ``pixel_values``. Languages without images are not there.
        lengths: language → how many tokens of each sequence are text, from the first on; of
            languages with images. In others all are, but for the last sequence.
    """

    ids: dict[str, Tensor]
    seq_len: int
    seed: int | None
    set_name: str
    corpus: str
    separator: str
    tokenizer: str
    report: dict[str, LanguageReport]
    chat_template: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    windows: str = ""
    inputs: dict[str, dict[int, Mapping[str, Tensor]]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)

    @property
    def tokens(self) -> dict[str, int]:
        """Language → the number of tokens that count.

        These are the first of ``ids`` in reading order, but for what is behind the text of a
        sequence (``lengths``), which is only there so that every forward has the same shape.
        """
        return {language: report.got for language, report in self.report.items()}

    @property
    def warnings(self) -> list[str]:
        """What makes the text doubtful, with the languages."""
        return said_of(
            (language, warning)
            for language, report in self.report.items()
            for warning in report.warnings
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all that changes results: ids, counts, order, weights, sequences."""
        digest = hashlib.sha256(f"seq_len {self.seq_len}\n".encode())
        for language, ids in self.ids.items():
            digest.update(f"{language} {len(ids)} {self.tokens[language]}\n".encode())
            digest.update(ids.numpy().astype("<i8").tobytes())
            if self.weights.get(language, 1.0) != 1.0:
                digest.update(f"weight {self.weights[language]!r}\n".encode())
            for index, given in self.inputs.get(language, {}).items():
                digest.update(f"sequence {index} {self.lengths[language][index]}\n".encode())
                for name, tensor in given.items():
                    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        if self.windows:
            digest.update(f"windows {self.windows}\n".encode())
        return digest.hexdigest()

    def lengths_of(self, language: str) -> list[int]:
        """Return how many tokens of each sequence of a language are text, from the first on.

        The last sequence may end later than the tokens that count; see ``tokens``.
        """
        return self.lengths.get(language) or [self.seq_len] * len(self.ids[language])

    def sequences(self, language: str) -> Iterator[tuple[Tensor, int]]:
        """Iterate over the sequences of a language.

        Yields:
            The ids [1, seq_len] int64, and the number of ids, from the first on, that count.

        Raises:
            KeyError: the calibration set does not have the language.
        """
        left = self.tokens[language]
        for sequence, length in zip(self.ids[language], self.lengths_of(language), strict=True):
            yield sequence.unsqueeze(0), min(left, length)
            left -= length

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint records about its calibration, in JSON types."""
        beside: dict[str, Any] = {"windows": self.windows} if self.windows else {}
        if self.inputs:
            beside["images"] = {language: len(each) for language, each in self.inputs.items()}
        return {
            "set": self.set_name,
            "corpus": self.corpus,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "separator": self.separator,
            **beside,
            "chat_template": self.chat_template,
            "tokenizer": self.tokenizer,
            "fingerprint": self.fingerprint,
            "arguments": self.arguments,
            "weights": self.weights,
            "languages": {language: asdict(report) for language, report in self.report.items()},
        }

    def table(self) -> str:
        """Return the report as a text table, with totals and with what is missing or left out."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(_align(row, widths)).rstrip() for row in cells]
        lines += self._remarks()
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def __repr__(self) -> str:
        asked = sum(report.asked for report in self.report.values())
        got = sum(self.tokens.values())
        of = "" if got == asked else f" of the {asked:,} asked for"
        warned = f"; {len(self.warnings)} warnings, see table()" if self.warnings else ""
        return (
            f"CalibrationSet '{self.set_name}' of the corpus '{self.corpus}': {got:,} tokens{of}, "
            f"in sequences of {self.seq_len}\n{len(self.ids)} languages: "
            f"{' '.join(self.ids)}{warned}"
        )

    def _repr_html_(self) -> str:
        header, *rows, totals = self._cells()
        most = max((report.got for report in self.report.values()), default=0) or 1
        lines: list[list[html.Cell]] = [
            [*row[:3], html.bar(report.got / most), *row[3:]]
            for row, report in zip(rows, self.report.values(), strict=True)
        ]
        return html.page(
            html.heading(repr(self).partition("\n")[0]),
            html.table([*header[:3], "", *header[3:]], [*lines, [*totals[:3], "", *totals[3:]]]),
            html.listing(self._remarks()),
            html.listing(self.warnings, "warning"),
        )

    def _cells(self) -> list[list[str]]:
        """Return the header, a row for each language, and the totals."""
        header = [
            "language", "asked", "got", "sequences", "documents", "repeated", "characters/token",
            "own script", "cut",
        ]  # fmt: skip
        rows = [_row(language, report) for language, report in self.report.items()]
        totals = ["total", *(f"{sum(column):,}" for column in zip(*self._counts(), strict=True))]
        totals[6:6] = ["", ""]
        return [header, *rows, totals]

    def _remarks(self) -> list[str]:
        """Return what is missing or left out."""
        lines = [
            f"short: {language} lacks {report.asked - report.got:,} of {report.asked:,} tokens"
            for language, report in self.report.items()
            if report.got < report.asked
        ]
        lines += [
            f"{language}: {len(images):,} sequences are conversations with images"
            for language, images in self.inputs.items()
        ]
        for language, report in self.report.items():
            if counts := left_out(report.read, report.dropped, report.examples):
                lines.append(f"{language}: {counts}")
        return lines

    def _counts(self) -> list[tuple[int, ...]]:
        return [
            (r.asked, r.got, r.sequences, r.documents, r.repeated, r.cut)
            for r in self.report.values()
        ]


def _row(language: str, report: LanguageReport) -> list[str]:
    counts = (report.asked, report.got, report.sequences, report.documents, report.repeated)
    ratio, script = report.characters_per_token, report.own_script
    shown = ["-" if ratio is None else f"{ratio:.2f}", "-" if script is None else f"{script:.1%}"]
    return [language, *(f"{count:,}" for count in counts), *shown, f"{report.cut:,}"]


def _align(row: list[str], widths: list[int]) -> list[str]:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return [row[0].ljust(widths[0]), *numbers]
