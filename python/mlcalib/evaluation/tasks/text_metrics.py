"""Scores of generated texts: BLEU (Papineni), chrF++ (Popović) and ROUGE-L (Lin)."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from mlcalib.common.optional import optional
from mlcalib.languages import Language

SAMPLES = 1000
"""The number of bootstrap samples from which the error of a corpus score is computed."""

_UNSPACED = frozenset({"Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"})


@dataclass(frozen=True)
class Score:
    """A score of a set of texts.

    Attributes:
        metric: the name of the metric.
        value: the score; from 0 to 100, where higher is better.
        stderr: its standard error over texts; None for a single text.
        n: the number of texts.
        drawn: whether the error comes from random samples.
    """

    metric: str
    value: float
    stderr: float | None
    n: int
    drawn: bool = False


def unspaced(language: Language) -> bool:
    """Return whether the script of a language has no spaces between words."""
    return language.script in _UNSPACED


def bleu_tokenizer(language: Language) -> str:
    """Return sacrebleu's tokenizer for text in a language: ``13a``, ``zh`` or ``char``."""
    if language.script in ("Hans", "Hant"):
        return "zh"
    return "char" if unspaced(language) else "13a"


def bleu(
    outputs: Sequence[str], references: Sequence[str], language: Language, seed: int = 0
) -> Score:
    """Return BLEU. The name of the metric says the tokenizer, e.g. ``bleu_13a``."""
    from sacrebleu.metrics.bleu import BLEU

    tokenizer = bleu_tokenizer(language)
    metric = BLEU(tokenize=tokenizer, force=True)
    return _corpus(f"bleu_{tokenizer}", metric, outputs, references, seed)


def chrf(outputs: Sequence[str], references: Sequence[str], seed: int = 0) -> Score:
    """Return chrF++, from character n-grams of up to 6 and word n-grams of up to 2."""
    from sacrebleu.metrics.chrf import CHRF

    return _corpus("chrf++", CHRF(word_order=2), outputs, references, seed)


def chrf_of_each(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the chrF++ of each single text. Their mean is not the chrF++ of all texts."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=2)
    pairs = zip(outputs, references, strict=True)
    return [float(metric.sentence_score(text, [wanted]).score) for text, wanted in pairs]


def spbleu(
    outputs: Sequence[str],
    references: Sequence[str],
    encode: Callable[[str], list[str]],
    seed: int = 0,
) -> Score:
    """Return BLEU over the pieces of a SentencePiece model."""
    from sacrebleu.metrics.bleu import BLEU

    pieces, wanted = (
        [" ".join(encode(text.rstrip())) for text in texts] for texts in (outputs, references)
    )
    return _corpus("spbleu", BLEU(tokenize="none", force=True), pieces, wanted, seed)


def sentencepiece_encoder(path: str | Path) -> Callable[[str], list[str]]:
    """Return a function that splits text into the pieces of a SentencePiece model.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: ``sentencepiece`` is not installed.
        ValueError: the file is not a SentencePiece model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no SentencePiece model at {path}.")
    sentencepiece = optional("sentencepiece", "eval", "spBLEU")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error

    def encode(text: str) -> list[str]:
        return list(processor.encode(text, out_type=str))

    return encode


def rouge_of_each(
    outputs: Sequence[str], references: Sequence[str], language: Language
) -> list[float]:
    """Return the ROUGE-L (F1, from 0 to 100) of each text.

    Words are sequences of letters, digits and marks, in lower case and not stemmed. If the script
    has no spaces, characters take the place of words. (The usual package drops all letters except a
    to z.)
    """
    scorer = optional("rouge_score.rouge_scorer", "eval", "ROUGE-L").RougeScorer(
        ["rougeL"], tokenizer=_Words(unspaced(language))
    )
    pairs = zip(outputs, references, strict=True)
    return [100 * float(scorer.score(wanted, text)["rougeL"].fmeasure) for text, wanted in pairs]


def mean(metric: str, values: Sequence[float]) -> Score:
    """Return the mean of values, one per item, and its standard error."""
    count = len(values)
    error = stdev(values) / math.sqrt(count) if count > 1 else None
    return Score(metric, fmean(values), error, count)


class _Words:
    """What ``rouge_score`` calls a tokenizer."""

    def __init__(self, characters: bool) -> None:
        self._characters = characters

    def tokenize(self, text: str) -> list[str]:
        return list(_words(unicodedata.normalize("NFC", text).lower(), self._characters))


@lru_cache(maxsize=4096)
def _words(text: str, characters: bool) -> tuple[str, ...]:
    """Split into words. Marks belong to words: many Indic vowels are marks."""
    kept = "".join(
        each if each.isalnum() or unicodedata.category(each).startswith("M") else " "
        for each in text
    )
    return tuple(kept.replace(" ", "") if characters else kept.split())


def _corpus(
    name: str, metric: Any, outputs: Sequence[str], references: Sequence[str], seed: int
) -> Score:
    """Score a corpus with sacrebleu; the error is that of 1000 bootstrap samples of its texts."""
    count = len(outputs)
    value = float(metric.corpus_score(list(outputs), [list(references)]).score)
    if count < 2:
        return Score(name, value, None, count)
    # Not its n_bootstrap: that fails (statistics.mean of two float types) where a sample gives 0.
    counts = np.array(metric._extract_corpus_statistics(list(outputs), [list(references)]))
    drawn = np.random.default_rng(seed).integers(count, size=(SAMPLES, count))
    scores = [
        float(metric._compute_score_from_stats(counts[sample].sum(0).tolist()).score)
        for sample in drawn
    ]
    return Score(name, value, stdev(scores), count, drawn=True)
