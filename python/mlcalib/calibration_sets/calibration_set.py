"""The calibration set: sequences of token ids per language, and how they came about."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from mlcalib.corpora import left_out


@dataclass(frozen=True)
class LanguageReport:
    """What was asked of a language's text, and what it gave.

    Attributes:
        asked: tokens, by the language's share of the budget.
        got: tokens that count; fewer than asked only where that was allowed.
        sequences: sequences they fill, the last perhaps in part.
        documents: documents they come from.
        characters_per_token: of those documents; None where only ids were given.
        cut: tokens of the last of those documents that do not count.
        read: documents read of the source; of one that is shuffled, more than are used.
        dropped: what of those was left out → how many, e.g. ``blank documents`` → 3.
        origin: where the documents come from: file, or data set and commit, translation model, ….
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
    """Token ids to calibrate on, per language.

    Attributes:
        ids: language → [n, seq_len] int64, on the CPU.
        seq_len: tokens in a sequence.
        seed: what documents were shuffled with; None where ids were given, which are not shuffled.
        set_name: name of the set of languages.
        corpus: name of the corpus.
        separator: what stands between documents, in words.
        tokenizer: fingerprint of the tokenizer.
        report: language → what was asked for and what there was.
        arguments: of ``mlcalib.calibration``, which makes this set again from them; JSON types.
            Empty where text, ids, a chat template or a nameless tokenizer were given in memory.
        chat_template: sha256 of what made text of conversations; None where text was given.
        weights: language → what its statistics weigh in the mixture; where missing, 1.
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
        """Language → tokens that count.

        They are the first of ``ids`` in reading order; the rest of the last sequence is there so
        that every forward has the same shape.
        """
        return {language: report.got for language, report in self.report.items()}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of what changes results: ids, counts, order, weights, sequence length."""
        digest = hashlib.sha256(f"seq_len {self.seq_len}\n".encode())
        for language, ids in self.ids.items():
            digest.update(f"{language} {len(ids)} {self.tokens[language]}\n".encode())
            digest.update(ids.numpy().astype("<i8").tobytes())
            if self.weights.get(language, 1.0) != 1.0:
                digest.update(f"weight {self.weights[language]!r}\n".encode())
        return digest.hexdigest()

    def sequences(self, language: str) -> Iterator[tuple[Tensor, int]]:
        """Iterate over a language's sequences.

        Yields:
            The ids, [1, seq_len] int64, and how many of them count: the first so many.

        Raises:
            KeyError: the calibration set does not have the language.
        """
        left = self.tokens[language]
        for sequence in self.ids[language]:
            yield sequence.unsqueeze(0), min(left, self.seq_len)
            left -= self.seq_len

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint records of its calibration; JSON types."""
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
        """Return the report as plain text: languages, totals, what is missing or left out."""
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
