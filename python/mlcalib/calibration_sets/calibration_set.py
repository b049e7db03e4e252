"""The calibration set: sequences of token ids per language, and where they come from."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from mlcalib.corpora import left_out


@dataclass(frozen=True)
class LanguageReport:
    """How many tokens of a language were asked for, and how many its text has.

    Attributes:
        asked: the tokens of the language by its share of the budget.
        got: the tokens that count. They are fewer than asked only if that was allowed.
        sequences: the sequences that these tokens fill; the last one may be filled in part.
        documents: the documents that these tokens come from.
        characters_per_token: the average over these documents; None if token ids were given.
        cut: the tokens at the end of the last document that do not count.
        read: the documents that were read from the source. A source that is shuffled reads more
            than are used.
        dropped: reason for leaving documents out → how many, e.g. ``blank documents`` → 3.
        origin: where the documents come from: a file, a data set with its commit, ….
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

    @property
    def tokens(self) -> dict[str, int]:
        """Language → the number of tokens that count.

        These are the first of ``ids`` in reading order. The rest of the last sequence is only there
        so that every forward has the same shape.
        """
        return {language: report.got for language, report in self.report.items()}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all that changes results: ids, counts, order, weights, seq_len."""
        digest = hashlib.sha256(f"seq_len {self.seq_len}\n".encode())
        for language, ids in self.ids.items():
            digest.update(f"{language} {len(ids)} {self.tokens[language]}\n".encode())
            digest.update(ids.numpy().astype("<i8").tobytes())
            if self.weights.get(language, 1.0) != 1.0:
                digest.update(f"weight {self.weights[language]!r}\n".encode())
        return digest.hexdigest()

    def sequences(self, language: str) -> Iterator[tuple[Tensor, int]]:
        """Iterate over the sequences of a language.

        Yields:
            The ids [1, seq_len] int64, and the number of ids, from the first on, that count.

        Raises:
            KeyError: the calibration set does not have the language.
        """
        left = self.tokens[language]
        for sequence in self.ids[language]:
            yield sequence.unsqueeze(0), min(left, self.seq_len)
            left -= self.seq_len

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint records about its calibration, in JSON types."""
        return {
            "set": self.set_name,
            "corpus": self.corpus,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "separator": self.separator,
            "chat_template": self.chat_template,
            "tokenizer": self.tokenizer,
            "fingerprint": self.fingerprint,
            "arguments": self.arguments,
            "weights": self.weights,
            "languages": {language: asdict(report) for language, report in self.report.items()},
        }

    def table(self) -> str:
        """Return the report as a text table, with totals and with what is missing or left out."""
        header = ["language", "asked", "got", "sequences", "documents", "characters/token", "cut"]
        rows = [_row(language, report) for language, report in self.report.items()]
        totals = ["total", *(f"{sum(column):,}" for column in zip(*self._counts(), strict=True))]
        totals[5:5] = [""]
        cells = [header, *rows, totals]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(_align(row, widths)).rstrip() for row in cells]
        for language, report in self.report.items():
            if report.got < report.asked:
                missing = report.asked - report.got
                lines.append(f"short: {language} lacks {missing:,} of {report.asked:,} tokens")
        for language, report in self.report.items():
            if counts := left_out(report.read, report.dropped):
                lines.append(f"{language}: {counts}")
        return "\n".join(lines)

    def _counts(self) -> list[tuple[int, ...]]:
        return [(r.asked, r.got, r.sequences, r.documents, r.cut) for r in self.report.values()]


def _row(language: str, report: LanguageReport) -> list[str]:
    counts = (report.asked, report.got, report.sequences, report.documents)
    ratio = report.characters_per_token
    shown = "-" if ratio is None else f"{ratio:.2f}"
    return [language, *(f"{count:,}" for count in counts), shown, f"{report.cut:,}"]


def _align(row: list[str], widths: list[int]) -> list[str]:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return [row[0].ljust(widths[0]), *numbers]
