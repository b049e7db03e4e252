"""Fills sequences of one length with documents."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mlcalib.calibration_sets.calibration_set import LanguageReport
from mlcalib.calibration_sets.tokens import Encoded
from mlcalib.languages import script_share


class Sequences(NamedTuple):
    """The sequences of a language.

    Attributes:
        ids: [n, seq_len] int64.
        lengths: how many tokens of each are text, from the first on.
        inputs: number of a sequence with images → what the model is given beside the ids.
    """

    ids: Tensor
    lengths: list[int]
    inputs: dict[int, Mapping[str, Tensor]]


def pack(
    documents: Iterable[Encoded],
    asked: int,
    seq_len: int,
    fill: int,
    begin: tuple[int, ...],
    script: str | None,
) -> tuple[Sequences, LanguageReport]:
    """Take documents until whole sequences hold ``asked`` tokens, or there are no more.

    Texts go on from one sequence to the next. A document with images is a sequence of its own,
    which stands after those that texts have filled before it came.

    Args:
        documents: see ``tokens.encode``.
        asked: tokens.
        seq_len: of a sequence.
        fill: the id behind the end of what is in a sequence.
        begin: ids that a sequence of text begins with.
        script: of the language, or None.
    """
    ids: list[int] = []
    begun = 0  # tokens among the first ``asked`` that stand before a sequence, in no document
    used: list[Encoded] = []
    alone: list[tuple[int, Encoded]] = []  # sequences of text before it, document with images
    seen = 0  # tokens of these
    for document in documents:
        if len(ids) + seen < asked:
            used.append(document)
        if document.inputs is not None:
            if len(ids) + seen < asked:
                alone.append((len(ids) // seq_len, document))
                seen += len(document.ids)
        else:
            at = 0
            while at < len(document.ids):
                if not len(ids) % seq_len and tuple(document.ids[at : at + len(begin)]) != begin:
                    begun += max(0, min(len(begin), asked - seen - len(ids)))
                    ids += begin
                end = at + seq_len - len(ids) % seq_len
                ids += document.ids[at:end]
                at = end
        if len(ids) >= -(-(asked - seen) // seq_len) * seq_len:
            break
    got = min(asked, len(ids) + seen)
    found = _sequences(ids, alone, seq_len, fill, got)
    texts = [document.text for document in used]
    characters, total = sum(map(len, texts)), sum(len(document.ids) for document in used)
    report = LanguageReport(
        asked=asked,
        got=got,
        sequences=len(found.lengths),
        documents=len(used),
        characters_per_token=characters / total if characters and total else None,
        cut=total + begun - got,
        repeated=len(texts) - len(set(texts)) if characters else 0,
        own_script=script_share(texts, script),
    )
    return found, report


def _sequences(
    ids: list[int], alone: list[tuple[int, Encoded]], seq_len: int, fill: int, got: int
) -> Sequences:
    """Return the first sequences that hold ``got`` tokens: of text, and with images between."""
    rows: list[tuple[list[int], dict[str, Tensor] | None]]
    rows = [(ids[start : start + seq_len], None) for start in range(0, len(ids), seq_len)]
    for before, document in reversed(alone):
        rows.insert(before, (document.ids, document.inputs))
    lengths: list[int] = []
    inputs: dict[int, Mapping[str, Tensor]] = {}
    held = 0
    for index, (row, given) in enumerate(rows):
        if held >= got:
            break
        held += len(row)
        lengths.append(len(row))
        if given is not None:
            inputs[index] = given
    padded = [[*row, *[fill] * (seq_len - len(row))] for row, _ in rows[: len(lengths)]]
    return Sequences(
        torch.tensor(padded, dtype=torch.int64).view(len(lengths), seq_len), lengths, inputs
    )
