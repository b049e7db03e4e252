"""Makes calibration sets: fills the share of each language with its text."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib.calibration_sets import chat
from mlcalib.calibration_sets.calibration_set import CalibrationSet, LanguageReport
from mlcalib.calibration_sets.images import Processor, encode_images
from mlcalib.calibration_sets.sequences import Sequences, pack
from mlcalib.calibration_sets.tokens import (
    Encoded,
    begin_ids,
    check_documents,
    describe_separator,
    describe_windows,
    encode,
    tokenizer_fingerprint,
)
from mlcalib.corpora import (
    Conversation,
    Document,
    Documents,
    Tally,
    left_out,
    notes,
    read_conversation,
    shuffled,
)
from mlcalib.languages import LanguageSet, language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(  # noqa: PLR0913 - options of one thing
    tokenizer: "PreTrainedTokenizerBase",
    texts: Mapping[str, Sequence[Document] | Documents],
    language_set: LanguageSet,
    *,
    tokens: int,
    seq_len: int,
    seed: int = 0,
    separator: str | None = None,
    chat_template: bool | str | Path = False,
    allow_short: bool = False,
    window_bos: bool = True,
    corpus: str = "given",
    processor: Processor | None = None,
) -> CalibrationSet:
    r"""Make a calibration set from text.

    The sequences of a language depend only on its own documents, the seed and the tokenizer. Other
    languages do not change them, and a smaller budget gives the beginning of the same sequences.

    Args:
        tokenizer: a fast tokenizer.
        texts: language → documents, as a list, which is shuffled, or as the ``Documents`` of a
            corpus, which are read in their order as far as they are needed. A document is a text
            or the messages of a conversation, ``{"role": …, "content": …}``.
        language_set: the languages and their shares.
        tokens: the number of tokens of the whole set, which is split by the shares.
        seq_len: the number of tokens of a sequence, 2 or more.
        seed: the seed with which the documents are shuffled.
        separator: what is put between documents. ``eos``, ``bos`` or any text, e.g. ``\n\n``, is
            put after each document, and nothing else is added. With None, the tokenizer adds what
            it always adds to a document; with a chat template, None adds nothing.
        chat_template: how conversations become text; see ``chat.find_template``.
        allow_short: if a language has too little text, use what there is instead of raising an
            error.
        window_bos: whether every sequence begins with the special tokens that the tokenizer begins
            a text with (BOS, if it adds one). They count as tokens.
        corpus: where the text comes from, for the record.
        processor: gives the model's processor, for conversations with images, each of which becomes
            a sequence of its own; None leaves these out.

    Raises:
        TypeError: the documents of a language are one string.
        ValueError: ``tokens`` is below 1, or ``seq_len`` below 2 or too small for text; a language
            has no text, a blank document, too little text, or a share of 0 tokens; there are
            conversations without a chat template, or text with one; the tokenizer is not fast,
            lacks the separator or the chat template, or gives ids that it has no entry for.
    """
    _check_seq_len(seq_len)
    shares = language_set.split(tokens)
    for code, asked in shares.items():
        if not asked:
            raise ValueError(
                f"The share of '{code}' in the set '{language_set.name}' rounds to 0 of {tokens:,} "
                "tokens; ask for more tokens, give it more weight, or leave it out."
            )
        if code not in texts:
            raise ValueError(
                f"No text was given in '{code}', which is in the set '{language_set.name}'; there "
                f"is text in: {', '.join(texts) or 'no language'}."
            )
        if not isinstance(texts[code], Documents):
            check_documents(texts[code], f"The text in '{code}'")  # type: ignore[arg-type]
    template = chat.find_template(tokenizer, chat_template)
    written = template is not None and separator is None  # by the template, special tokens too
    begin = begin_ids(tokenizer) if window_bos else ()
    _check_seq_len(seq_len, begin)
    packed: dict[str, Sequences] = {}
    report: dict[str, LanguageReport] = {}
    for code, asked in shares.items():
        documents = _documents(texts[code], seed, code)
        tally = Tally(images=None if processor is None or template is None else Path())
        rendered = _rendered(
            tokenizer,
            documents.read(tally),
            template,
            f"The text in '{code}'",
            tally,
            processor,
            seq_len,
        )
        room = -(-asked // seq_len) * seq_len
        encoded = encode(tokenizer, rendered, "" if written else separator, room)
        script = language(code).script
        packed[code], entry = pack(encoded, asked, seq_len, _fill_id(tokenizer), begin, script)
        report[code] = replace(
            entry,
            read=tally.read,
            dropped=dict(tally.dropped),
            noted=dict(tally.noted),
            examples=tally.examples,
            origin=documents.origin,
        )
    _check_enough(report, allow_short)
    return CalibrationSet(
        ids={code: each.ids for code, each in packed.items()},
        seq_len=seq_len,
        seed=seed,
        set_name=language_set.name,
        corpus=corpus,
        separator=chat.DESCRIPTION if written else describe_separator(tokenizer, separator),
        tokenizer=tokenizer_fingerprint(tokenizer),
        report=report,
        chat_template=chat.fingerprint(template),
        windows=describe_windows(tokenizer, window_bos),
        inputs={code: each.inputs for code, each in packed.items() if each.inputs},
        lengths={code: each.lengths for code, each in packed.items() if each.inputs},
    )


def weighted(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Mapping[str, Sequence[Document] | Documents],
    language_set: LanguageSet,
    *,
    tokens: int,
    **options: Any,
) -> CalibrationSet:
    """Make a calibration set in which the shares weigh statistics, not tokens.

    Every language has the same number of tokens, and its share is the weight of its statistics. So
    sets that differ only in their shares have the same text.

    Args:
        tokenizer: see ``build``.
        texts: see ``build``.
        language_set: the languages and their shares.
        tokens: the number of tokens of each language.
        options: see ``build``.

    Raises:
        TypeError, ValueError: see ``build``.
    """
    count = len(language_set.weights)
    alike = LanguageSet(language_set.name, dict.fromkeys(language_set.weights, 1))
    built = build(tokenizer, texts, alike, tokens=tokens * count, **options)
    # So that the mixture counts as many tokens as there are.
    weights = {code: share * count for code, share in language_set.weights.items()}
    return replace(built, weights=weights)


def from_ids(
    ids: Mapping[str, Sequence[Sequence[int]]], *, seq_len: int, corpus: str = "given"
) -> CalibrationSet:
    """Make a calibration set from token ids, which are all used in the order given.

    Args:
        ids: language → documents, each a sequence of token ids. They are joined with nothing
            between them, so documents of ``seq_len`` ids stay as they are.
        seq_len: the number of tokens of a sequence, 2 or more.
        corpus: where the ids come from, for the record.

    Raises:
        ValueError: ``seq_len`` is below 2; there is no language, or an unknown one; a language has
            no ids; an id is not an integer of 0 or more.
    """
    _check_seq_len(seq_len)
    if not ids:
        raise ValueError("No ids were given; give {language: [[id, …], …]}.")
    packed = {}
    for code, documents in ids.items():
        language(code)
        rows = [_checked(document, code) for document in documents]
        total = sum(map(len, rows))
        if not total:
            raise ValueError(f"There are no ids for '{code}'; give some or leave it out.")
        encoded = (Encoded("", row, []) for row in rows)
        packed[code] = pack(encoded, total, seq_len, 0, (), None)
    return CalibrationSet(
        ids={code: rows.ids for code, (rows, _) in packed.items()},
        seq_len=seq_len,
        seed=None,
        set_name="+".join(ids),
        corpus=corpus,
        separator="as given: token ids are not changed",
        tokenizer="none: token ids were given",
        report={code: entry for code, (_, entry) in packed.items()},
    )


def _documents(given: Sequence[Document] | Documents, seed: int, code: str) -> Documents:
    if isinstance(given, Documents):
        return given

    def read(tally: Tally) -> Iterator[Document]:
        tally.read = len(given)
        for document in shuffled(given, seed, code):
            if isinstance(document, str):
                yield document
            elif (found := read_conversation(document, None, tally, f"'{code}'")) is not None:
                yield found

    return Documents(read)


def _rendered(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Iterable[Document],
    template: str | None,
    what: str,
    tally: Tally,
    processor: Processor | None,
    seq_len: int,
) -> Iterator[str | Encoded]:
    """Yield documents as text; conversations with images as the model's processor encodes them."""
    for document in documents:
        if not (isinstance(document, Conversation) and document.has_images):
            yield from chat.render(tokenizer, [document], template, what, tally)
        elif processor is not None and template is not None:
            if (loaded := processor()) is None:
                tally.drop("conversations with images, for a model without a processor", what)
                continue
            found = encode_images(loaded, document, template, tally, seq_len)
            if found is not None:
                yield found


def _fill_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """What follows the end of the text in the last sequence; it is never counted."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None), 0)


def _check_seq_len(seq_len: int, begin: tuple[int, ...] = ()) -> None:
    least = max(2, len(begin) + 1)
    if seq_len < least:
        raise ValueError(f"seq_len is {seq_len}; a sequence needs {least} tokens or more.")


def _check_enough(reports: Mapping[str, LanguageReport], allow_short: bool) -> None:
    short = {code: report for code, report in reports.items() if report.got < report.asked}
    for code, report in short.items():
        if not report.documents:
            raise ValueError(f"There are no documents in '{code}'{_what_went(report)}.")
        if not report.got:
            raise ValueError(f"The tokenizer makes no tokens of the text in '{code}'.")
    if short and not allow_short:
        lines = [
            f"Too little text in '{code}': {report.asked:,} tokens were asked for, {report.got:,} "
            f"are available in {report.documents:,} documents, {report.asked - report.got:,} are "
            f"missing{_what_went(report)}."
            for code, report in short.items()
        ]
        raise ValueError(
            "\n".join(lines) + f"\nGive more text, ask for fewer tokens{_at_most(reports)}, or use "
            "what there is with --allow-short (allow_short=True)."
        )


def _at_most(reports: Mapping[str, LanguageReport]) -> str:
    """Say for how many tokens in all there is text, if languages keep their shares."""
    asked = sum(report.asked for report in reports.values())
    # A language is asked for less than one token below its share: that one is added.
    enough = min(
        asked * report.got // (report.asked + 1)
        for report in reports.values()
        if report.got < report.asked
    )
    each = {report.asked for report in reports.values()}
    per_language = f", {enough // len(reports):,} in each language" if len(each) == 1 else ""
    shares = f"there is enough for {enough:,} in all{per_language}, in these shares"
    return f" ({shares})" if enough else ""


def _what_went(report: LanguageReport) -> str:
    said = [left_out(report.read, report.dropped, report.examples)]
    counts = "; ".join(filter(None, [*said, *notes(report.noted, report.examples)]))
    return f" ({counts})" if counts else ""


def _checked(document: Sequence[int], code: str) -> list[int]:
    try:
        row = [operator.index(token) for token in document]
    except TypeError as error:
        raise ValueError(f"The ids of '{code}' are not all integers: {error}.") from error
    if row and min(row) < 0:
        raise ValueError(f"The ids of '{code}' hold {min(row)}; an id is 0 or more.")
    return row
