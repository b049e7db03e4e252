"""Scores generated texts, by the kind of their task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlcalib.evaluation.tasks import confusion
from mlcalib.evaluation.tasks.prompts import Prompts
from mlcalib.evaluation.tasks.text_metrics import (
    Score,
    bleu,
    chrf,
    chrf_of_each,
    mean,
    rouge_of_each,
    spbleu,
)

Encoder = Callable[[str], list[str]]


@dataclass(frozen=True)
class Scored:
    """Scores of one task in one language.

    Attributes:
        scores: one per metric.
        items: a number per item: 0 or 1 for wrong and right, a score of that text alone, or None
            where an item says nothing; empty where nothing is scored.
        missing: metric → why it is not there.
    """

    scores: list[Score]
    items: list[float | None] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def score(asked: Prompts, outputs: Sequence[str], encoder: Encoder | None, seed: int = 0) -> Scored:
    """Score the texts that a model generated.

    Args:
        asked: the prompts.
        outputs: the generations.
        encoder: what spBLEU splits text with.
        seed: the seed of the bootstrap that gives the errors of corpus scores.
    """
    if asked.kind == "translation":
        return _translations(asked, outputs, encoder, seed)
    if asked.kind == "summary":
        rouge = rouge_of_each(outputs, asked.references, asked.target)
        return Scored([mean("rouge_l", rouge), chrf(outputs, asked.references, seed)], list(rouge))
    if asked.kind == "confusion":
        return _confusion(asked, outputs)
    return Scored([], missing={"win_rate": f"{len(outputs)} generations, to be judged"})


def _translations(
    asked: Prompts, outputs: Sequence[str], encoder: Encoder | None, seed: int
) -> Scored:
    scores = [
        chrf(outputs, asked.references, seed),
        bleu(outputs, asked.references, asked.target, seed),
    ]
    missing = {}
    if encoder is None:
        missing["spbleu"] = "tokenizer not available"
    else:
        scores.append(spbleu(outputs, asked.references, encoder, seed))
    return Scored(scores, list(chrf_of_each(outputs, asked.references)), missing)


def _confusion(asked: Prompts, outputs: Sequence[str]) -> Scored:
    if reason := confusion.measurable(asked.target):
        return Scored([], missing={"line_pass_rate": reason, "word_pass_rate": reason})
    verdicts = confusion.judge(outputs, asked.target)
    items = [None if each.lines is None else float(each.lines) for each in verdicts]
    lines = [value for value in items if value is not None]
    words = [float(each.words) for each in verdicts if each.words is not None]
    scores, missing = [], {}
    if lines:
        scores.append(mean("line_pass_rate", lines))
    else:
        missing["line_pass_rate"] = "not measured: no response has a line of five words"
    if words:
        scores.append(mean("word_pass_rate", words))
    elif asked.target.script == "Latn":
        missing["word_pass_rate"] = "not measured: Latin script"
    else:
        missing["word_pass_rate"] = "not measured: no response passes at line level"
    return Scored(scores, items, missing)
