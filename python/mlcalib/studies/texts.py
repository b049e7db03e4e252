"""The text of a study, which is read and tokenised once for all calibration settings."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.calibration_sets.calibrate import from_documents
from mlcalib.corpora import Document, Documents, Tally, open_corpus
from mlcalib.quantization.prefixes import Prefix, mixture_of
from mlcalib.studies.grid import Setting, settings_of
from mlcalib.studies.spec import StudySpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StudyText:
    """The calibration text of a study.

    Attributes:
        settings: name → calibration set, equal to what ``mlcalib.calibration`` makes.
        union: the longest text of each language. The text of every setting is a beginning of it.
        prefixes: the beginnings that the settings consist of.
    """

    settings: dict[str, CalibrationSet]
    union: CalibrationSet
    prefixes: list[Prefix]


def study_text(spec: StudySpec, tokenizer: "PreTrainedTokenizerBase") -> StudyText | None:
    """Make all calibration sets of a study, or return None if it has no settings.

    Raises:
        FileNotFoundError, ValueError: see ``mlcalib.calibration``.
    """
    settings = settings_of(spec)
    if not settings:
        return None
    codes = dict.fromkeys(code for each in settings.values() for code in each.set.weights)
    texts = {code: _kept(_open(spec, code)) for code in codes}
    made = {name: _calibration(spec, each, texts, tokenizer) for name, each in settings.items()}
    prefixes = dict.fromkeys(prefix for each in made.values() for prefix in mixture_of(each))
    return StudyText(made, _union(made), list(prefixes))


def _open(spec: StudySpec, code: str) -> Documents:
    return open_corpus(spec.corpora.get(code, spec.corpus)).documents(code, "calib", spec.seed)


def _calibration(
    spec: StudySpec,
    setting: Setting,
    texts: Mapping[str, Documents],
    tokenizer: "PreTrainedTokenizerBase",
) -> CalibrationSet:
    # Of several corpora, no call of mlcalib.calibration makes it again.
    several = spec.corpora.keys() & setting.set.weights.keys()
    return from_documents(
        tokenizer,
        texts,
        setting.set,
        None if several else setting.languages,
        spec.corpus,
        setting.tokens,
        setting.tokens_per_language,
        {
            "seq_len": spec.seq_len,
            "seed": spec.seed,
            "separator": spec.separator,
            "chat_template": False,
            "allow_short": spec.allow_short,
            "window_bos": spec.window_bos,
        },
    )


def _union(made: Mapping[str, CalibrationSet]) -> CalibrationSet:
    """Return a set with the longest text of each language."""
    best: dict[str, CalibrationSet] = {}
    for each in made.values():
        for code, tokens in each.tokens.items():
            if code not in best or tokens > best[code].tokens[code]:
                best[code] = each
    first = next(iter(made.values()))
    return replace(
        first,
        ids={code: each.ids[code] for code, each in best.items()},
        report={code: each.report[code] for code, each in best.items()},
        set_name="union",
        arguments={},
        weights={},
    )


def _kept(documents: Documents) -> Documents:
    """Return documents that are read from their source once, however often they are asked for."""
    known: list[tuple[Document, Tally]] = []  # with the tally when each was given
    tally = Tally()
    rest = documents.read(tally)
    ended: list[bool] = []

    def read(own: Tally) -> Iterator[Document]:
        at = 0
        while True:
            if at == len(known):
                if ended or (found := next(rest, None)) is None:
                    ended.append(True)
                    own.take(tally)
                    return
                known.append((found, deepcopy(tally)))
            document, counted = known[at]
            own.take(counted)
            at += 1
            yield document

    return Documents(read, documents.origin)
