import logging
import time
import tracemalloc

import pytest
import torch
from small_tokenizer import make_tokenizer
from transformers import PreTrainedTokenizerFast

from mlcalib.calibration_sets import build, describe_separator, stream, tokenizer_fingerprint
from mlcalib.calibration_sets import tokens as tokens_module
from mlcalib.languages import language_set

EN = [f"The market number {i} opens before sunrise, {'and again ' * (i % 5)}." for i in range(40)]


def calibrate(tokenizer, documents=EN, tokens=9, **options):
    texts = {"en": documents}
    return build(tokenizer, texts, language_set("en"), tokens=tokens, seq_len=4, **options)


def test_tokenizer_fingerprint():
    tokenizer = make_tokenizer()
    first = tokenizer_fingerprint(tokenizer)
    tokenizer("one two", truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == first
    assert tokenizer_fingerprint(make_tokenizer()) == first
    assert tokenizer_fingerprint(make_tokenizer("<s> $A")) != first


@pytest.mark.parametrize("call", [calibrate, tokenizer_fingerprint, lambda t: stream(t, ["a"])])
def test_slow_tokenizer(call):
    class Slow:
        is_fast = False
        pad_token_id = None
        eos_token_id = None

        def __len__(self):
            return 9

    with pytest.raises(ValueError, match=r"Slow is not a fast tokenizer.*from_ids"):
        call(Slow())


def test_long_documents_do_not_warn(caplog):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 8
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        calibrate(tokenizer)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize(
    ("template", "separator", "description"),
    [
        (None, None, "none: the tokenizer adds nothing between documents; set --separator"),
        ("<s> $A", None, "bos <s> before each document"),
        ("$A </s>", None, "eos </s> after each document"),
        ("<s> $A </s>", None, "bos <s> before each document, eos </s> after each document"),
        ("<s> $A", "eos", "eos </s> after each document"),
        ("<s> $A", "bos", "bos <s> after each document"),
        ("<s> $A", "\n\n", r"text '\n\n' (2 tokens) after each document"),
        ("<s> $A", "", "none: documents follow each other directly"),
    ],
)
def test_separators(template, separator, description):
    tokenizer = make_tokenizer(template)
    assert describe_separator(tokenizer, separator) == description
    documents = ["one", "two"]
    if separator is None:
        wanted = [tokenizer(document).input_ids for document in documents]
    else:
        plain = [tokenizer(document, add_special_tokens=False).input_ids for document in documents]
        text = {"eos": "</s>", "bos": "<s>"}.get(separator, separator)
        tail = tokenizer(text, add_special_tokens=False).input_ids
        wanted = [ids + tail for ids in plain]
    assert stream(tokenizer, documents, separator).ids.tolist() == [
        i for ids in wanted for i in ids
    ]
    plain = {"separator": separator, "window_bos": False}
    found = calibrate(tokenizer, ["one"] * 9, tokens=8, **plain)
    assert found.separator == description
    assert found.ids["en"].flatten().tolist() == (wanted[0] * 9)[:8]


def test_one_token_for_bos_and_eos_is_named_by_its_place():
    tokenizer = make_tokenizer("<s> $A")
    tokenizer.eos_token = "<s>"
    assert describe_separator(tokenizer, None) == "bos <s> before each document"


def test_separator_that_the_tokenizer_lacks():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="'eos' was asked for, but the tokenizer has no eos token"):
        stream(tokenizer, ["one"], "eos")


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("separator", [None, "eos", "\n\n", ""])
def test_stream_counts_every_byte_once(trim_offsets, separator):
    tokenizer = make_tokenizer("<s> $A </s>", trim_offsets)
    documents = ["The  market — 市场 🏪 opens ", "  Yorùbá\n", "é"]
    ids, byte_counts, owner, _ = stream(tokenizer, documents, separator)
    assert ids.dtype == byte_counts.dtype == owner.dtype == torch.int64
    assert ids.shape == byte_counts.shape == owner.shape
    tail = separator if separator not in (None, "eos") else ""
    for index, document in enumerate(documents):
        mine = byte_counts[owner == index]
        assert mine.sum() == len((document + tail).encode())
    special = (ids == tokenizer.bos_token_id) | (ids == tokenizer.eos_token_id)
    assert not byte_counts[special].any()
    assert owner.tolist() == sorted(owner.tolist())


def test_first_token_of_a_character_has_its_bytes(tokenizer):
    ids, byte_counts, *_ = stream(tokenizer, ["a🏪b"])
    assert len(ids) == 6
    assert byte_counts.tolist() == [1, 4, 0, 0, 0, 1]


def test_stream_keeps_the_order_and_refuses_nothing_to_read(tokenizer):
    ids, _, owner, _ = stream(tokenizer, EN)
    assert tokenizer.decode(ids) == "".join(EN)
    assert owner.max() == len(EN) - 1
    with pytest.raises(ValueError, match="The text has no documents"):
        stream(tokenizer, [])
    with pytest.raises(ValueError, match=r"The text has a blank document \(index 0\)"):
        stream(tokenizer, [""])
    with pytest.raises(TypeError, match="The text is one string"):
        stream(tokenizer, "one")


@pytest.mark.parametrize("separator", [None, "eos", ""])
def test_every_sequence_begins_as_the_tokenizer_begins_a_text(separator):
    tokenizer = make_tokenizer("<s> $A </s>")
    bos = tokenizer.bos_token_id
    found = calibrate(tokenizer, ["one two", "three"] * 9, 30, separator=separator)
    assert found.ids["en"][:, 0].tolist() == [bos] * 8
    inside = found.ids["en"][:, 1:].flatten().tolist()
    assert (bos in inside) == (separator is None)
    assert found.windows == "bos <s>"
    assert found.describe()["windows"] == "bos <s>"
    plain = {"separator": separator, "window_bos": False}
    before = calibrate(tokenizer, ["one two", "three"] * 9, 30, **plain)
    assert (bos in before.ids["en"]) == (separator is None)
    assert "windows" not in before.describe()
    assert before.fingerprint != found.fingerprint


def test_windows_hold_the_text_without_a_gap():
    tokenizer = make_tokenizer("<s> $A")
    texts = ["one two three four five six seven"]
    found = calibrate(tokenizer, texts, 100, allow_short=True)
    sequences = [ids[0, :count].tolist() for ids, count in found.sequences("en")]
    assert [i for each in sequences for i in each[1:]] == tokenizer(texts[0]).input_ids[1:]
    report = found.report["en"]
    assert report.got == len(tokenizer(texts[0]).input_ids) + len(sequences) - 1
    assert report.cut == 0
    short = calibrate(tokenizer, texts, 6).report["en"]
    assert short.cut == len(tokenizer(texts[0]).input_ids) - 5


def test_a_tokenizer_that_adds_no_bos_has_plain_windows(tokenizer):
    with_it, without = (calibrate(tokenizer, window_bos=each) for each in (True, False))
    assert with_it.fingerprint == without.fingerprint
    assert "windows" not in with_it.describe()
    with pytest.raises(ValueError, match="seq_len is 1; a sequence needs 2"):
        build(tokenizer, {"en": EN}, language_set("en"), tokens=9, seq_len=1)


@pytest.mark.parametrize("template", [None, "<s> $A </s>"])
@pytest.mark.parametrize("word", [" market", "市场", " ", "\n\t x"])
def test_a_long_document_is_tokenised_as_far_as_needed(template, word, monkeypatch):
    tokenizer = make_tokenizer(template)
    monkeypatch.setattr(tokens_module, "LONG", 4000)
    long = "a" + "".join(f"{word}{number if word.strip() else ''}" for number in range(9000)) + "b"
    seen = []
    tokenise = tokens_module._tokenise

    def counted(tokenizer, text, **options):
        seen.append(len(text))
        return tokenise(tokenizer, text, **options)

    monkeypatch.setattr(tokens_module, "_tokenise", counted)
    for wanted in (10, 300, 3000):
        seen.clear()
        found = stream(tokenizer, [long, "next"], tokens=wanted)
        whole = stream(tokenizer, [long, "next"])
        assert found.ids[:wanted].tolist() == whole.ids[:wanted].tolist()
        assert found.byte_counts[:wanted].tolist() == whole.byte_counts[:wanted].tolist()
        assert wanted > 500 or not word.strip() or max(seen[:-2]) < len(long) / 2
    assert len(stream(tokenizer, [long, "next"], tokens=10**6).ids) == len(whole.ids)


def test_time_and_memory_follow_the_tokens(tokenizer):
    line = "le marché ouvre avant l'aube et les premiers acheteurs attendent "
    long = line * 250_000  # 17 MB
    tracemalloc.start()
    began = time.perf_counter()
    calibrate(tokenizer, [long], tokens=1024)
    assert time.perf_counter() - began < 5  # 0.3 s where nothing else runs
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
