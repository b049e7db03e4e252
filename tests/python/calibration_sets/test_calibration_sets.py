import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import make_tokenizer
from transformers import PreTrainedTokenizerFast

import mlcalib
from mlcalib.calibration_sets import LanguageReport, build, from_ids
from mlcalib.languages import LanguageSet, language_set, languages, script_share

EN = [f"The market number {i} opens before sunrise, {'and again ' * (i % 5)}." for i in range(40)]
SW = [f"Soko la {i} hufunguliwa kabla ya jua kuchomoza{' tena' * (i % 3)}." for i in range(40)]
ZH = [f"市场{i}在日出前开门。" for i in range(40)]
TEXTS = {"en": EN, "sw": SW, "zh": ZH}


def calibrate(tokenizer, spec="en,sw", tokens=100, seq_len=16, texts=TEXTS, **options):
    return build(tokenizer, texts, language_set(spec), tokens=tokens, seq_len=seq_len, **options)


def counted(calibration, language):
    return [i for ids, count in calibration.sequences(language) for i in ids[0, :count].tolist()]


def test_sequences_have_one_shape_and_count_the_budget(tokenizer):
    calibration = calibrate(tokenizer, "en:0.7,sw:0.3", tokens=101)
    assert calibration.tokens == {"en": 71, "sw": 30}
    assert calibration.ids["en"].shape == (5, 16)
    assert calibration.ids["sw"].shape == (2, 16)
    pairs = list(calibration.sequences("en"))
    assert all(ids.shape == (1, 16) and ids.dtype == torch.int64 for ids, _ in pairs)
    assert [count for _, count in pairs] == [16, 16, 16, 16, 7]
    assert calibration.set_name == "en0.7+sw0.3"
    assert (calibration.seed, calibration.seq_len, calibration.corpus) == (0, 16, "given")


def test_documents_are_whole_shuffled_and_end_to_end(tokenizer):
    calibration = calibrate(tokenizer, "en", tokens=4096, allow_short=True)
    text = tokenizer.decode(counted(calibration, "en"))
    rest = text
    for document in sorted(EN, key=text.index):
        assert rest.startswith(document)
        rest = rest.removeprefix(document)
    assert rest == ""
    assert text != "".join(EN)


@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(2, 50),
    st.sampled_from([None, "eos", "\n"]),
)
@settings(max_examples=25, deadline=None)
def test_smaller_budget_is_a_prefix(tokenizer, first, second, seq_len, separator):
    small, large = (
        calibrate(tokenizer, "en", tokens=tokens, seq_len=seq_len, separator=separator)
        for tokens in sorted((first, second))
    )
    assert torch.equal(small.ids["en"], large.ids["en"][: len(small.ids["en"])])
    assert counted(small, "en") == counted(large, "en")[: small.tokens["en"]]


@given(
    st.dictionaries(st.sampled_from(["en", "sw", "zh"]), st.integers(1, 9), min_size=1),
    st.integers(30, 600),
    st.integers(2, 50),
)
@settings(max_examples=25, deadline=None)
def test_counted_tokens_are_the_split(tokenizer, weights, tokens, seq_len):
    chosen = LanguageSet("x", weights)
    calibration = build(tokenizer, TEXTS, chosen, tokens=tokens, seq_len=seq_len)
    assert calibration.tokens == chosen.split(tokens)
    assert list(calibration.ids) == list(weights)
    for code, count in calibration.tokens.items():
        assert len(counted(calibration, code)) == count
        assert len(calibration.ids[code]) == -(-count // seq_len)


@given(st.permutations(["en", "sw", "zh"]), st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_other_languages_do_not_matter(tokenizer, order, number):
    alone = calibrate(tokenizer, "en", tokens=96)
    codes = ["en", *[code for code in order if code != "en"]][:number]
    texts = {code: TEXTS[code] for code in sorted(codes, key=order.index)}
    together = calibrate(tokenizer, ",".join(codes), tokens=96 * number, texts=texts)
    assert torch.equal(alone.ids["en"], together.ids["en"])


def test_seed_shuffles(tokenizer):
    zero, again, one = (calibrate(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(zero.ids["en"], again.ids["en"])
    assert not torch.equal(zero.ids["en"], one.ids["en"])


def test_last_sequence_runs_on_then_is_filled(tokenizer):
    part = calibrate(tokenizer, "en", tokens=20, seq_len=16)
    whole = calibrate(tokenizer, "en", tokens=32, seq_len=16)
    assert torch.equal(part.ids["en"], whole.ids["en"])
    texts = {"en": ["one two"]}
    length = len(tokenizer("one two").input_ids)
    end = calibrate(tokenizer, "en", tokens=length, seq_len=16, texts=texts)
    assert end.ids["en"][0, length:].tolist() == [tokenizer.eos_token_id] * (16 - length)
    assert [count for _, count in end.sequences("en")] == [length]


def test_fill_is_the_pad_token_or_zero():
    padded = make_tokenizer()
    padded.pad_token = "a"
    bare = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer)
    for tokenizer, fill in ((padded, padded.pad_token_id), (bare, 0)):
        found = calibrate(tokenizer, "en", tokens=1, seq_len=64, texts={"en": ["x"]})
        assert found.ids["en"][0, 1:].tolist() == [fill] * 63


def test_fingerprint_covers_what_changes_results(tokenizer):
    base = calibrate(tokenizer)
    assert len(base.fingerprint) == 64
    assert base.fingerprint == calibrate(tokenizer, corpus="elsewhere").fingerprint
    others = [
        calibrate(tokenizer, "sw,en"),
        calibrate(tokenizer, tokens=98),
        calibrate(tokenizer, seq_len=20),
        calibrate(tokenizer, seed=1),
        calibrate(tokenizer, separator="eos"),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_table(tokenizer):
    texts = {"en": ["one two three"] * 9, "sw": ["moja"]}
    each = len(tokenizer("one two three").input_ids)
    short = len(tokenizer("moja").input_ids)
    found = calibrate(tokenizer, tokens=4 * each + 2, seq_len=8, texts=texts, allow_short=True)
    asked = 2 * each + 1
    report = found.report["en"]
    assert (report.asked, report.got, report.documents) == (asked, asked, 3)
    assert report.cut == each - 1
    assert report.characters_per_token == 13 / each
    lines = found.table().splitlines()
    assert lines[0].split() == [
        "language", "asked", "got", "sequences", "documents", "repeated", "characters/token",
        "own", "script", "cut",
    ]  # fmt: skip
    numbers = [asked, asked, -(-asked // 8), 3, 2, f"{13 / each:.2f}", "100.0%", each - 1]
    assert lines[1].split() == ["en", *map(str, numbers)]
    assert lines[2].split() == [
        "sw",
        *map(str, (asked, short, 1, 1, 0, f"{4 / short:.2f}", "100.0%", 0)),
    ]
    totals = [2 * asked, asked + short, -(-asked // 8) + 1, 4, 2, each - 1]
    assert lines[3].split() == ["total", *map(str, totals)]
    assert lines[4:] == [
        f"short: sw lacks {asked - short} of {asked} tokens",
        "warning: en: 2 of 3 documents repeat another (more than 10%): the text is less than it "
        "seems",
    ]


def test_text_in_another_script_is_warned_of(tokenizer, caplog):
    french = [f"le marché numéro {number} ouvre avant l'aube" for number in range(40)]
    found = mlcalib.calibration(tokenizer, corpus={"zh": french}, tokens=64, seq_len=16)
    assert found.report["zh"].own_script == 0
    said = "0.0% of the letters are of the language's script (less than 50%)"
    assert said in found.table()
    assert said in caplog.text
    for code, text in (("zh", ZH), ("code", french), ("sw", SW)):
        found = calibrate(tokenizer, code, tokens=64, texts={code: text})
        assert found.report[code].own_script == (None if code == "code" else 1)
        assert not found.report[code].warnings


@pytest.mark.parametrize(
    ("code", "text", "share"),
    [
        ("Jpan", "市場はビールを売る。", 1),
        ("Hang", "시장 市場", 1),
        ("Hans", "市场market", 0.25),
        ("Latn", "Yoru\u0300ba\u0301 12%", 1),
        ("Cyrl", "12 !?", None),
        (None, "text", None),
    ],
)
def test_the_share_of_a_script(code, text, share):
    assert script_share([text], code) == share


def test_every_script_has_a_property():
    for script in {each.script for each in languages() if each.script}:
        script_share(["a"], script)


def test_a_report_of_before_is_unpickled():
    report = LanguageReport(9, 9, 1, 1, 1.5, 0)
    old = LanguageReport.__new__(LanguageReport)
    known = ("asked", "got", "sequences", "documents", "characters_per_token", "cut")
    old.__setstate__({name: getattr(report, name) for name in known})
    assert old == report
    assert pickle.loads(pickle.dumps(report)) == report


def test_too_little_text(tokenizer):
    texts = {"en": EN, "sw": ["moja mbili"], "zh": ["一"]}
    have = len(tokenizer("moja mbili").input_ids)
    with pytest.raises(ValueError) as error:
        calibrate(tokenizer, "en,sw,zh", tokens=300, texts=texts)
    message = str(error.value)
    assert (
        f"Too little text in 'sw': 100 tokens were asked for, {have} are available in 1 documents, "
        f"{100 - have} are missing." in message
    )
    assert "Too little text in 'zh'" in message
    assert "'en'" not in message
    assert "--allow-short (allow_short=True)" in message


def test_as_many_tokens_as_too_little_text_is_said_to_be_enough_for(tokenizer):
    texts = {"en": EN, "sw": ["moja mbili tatu nne tano sita saba nane tisa kumi"]}
    for spelled in ("en:0.7,sw:0.3", "en,sw"):
        with pytest.raises(ValueError, match=r"fewer tokens \(there is enough for") as error:
            calibrate(tokenizer, spelled, tokens=300, texts=texts)
        enough = int(re.search(r"enough for ([\d,]+) in all", str(error.value))[1].replace(",", ""))
        assert calibrate(tokenizer, spelled, tokens=enough, texts=texts).ids
        assert ("in each language" in str(error.value)) == (spelled == "en,sw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "0 tokens was asked for"),
        ({"tokens": -5}, "-5 tokens was asked for"),
        ({"seq_len": 1}, "seq_len is 1; a sequence needs 2 tokens or more"),
        ({"spec": "en:1,sw:9999"}, r"share of 'en' in the set '.*' rounds to 0 of 100 tokens; ask"),
        ({"spec": "en,ha"}, r"No text was given in 'ha', .*'en\+ha'; .* text in: en, sw, zh"),
        ({"texts": {"en": EN, "sw": []}}, "text in 'sw' has no documents"),
        ({"texts": {"en": EN, "sw": ["a", " \n"]}}, r"'sw' has a blank document \(index 1\)"),
    ],
)
def test_refusals(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(tokenizer, **options)


def test_one_string_is_not_documents(tokenizer):
    with pytest.raises(TypeError, match="text in 'en' is one string; give a list of documents"):
        calibrate(tokenizer, "en", texts={"en": "The market"})


def test_text_that_gives_no_tokens(tokenizer):
    class Deaf(PreTrainedTokenizerFast):
        def __call__(self, *args, **options):
            batch = super().__call__(*args, **options)
            return {key: [] for key in batch}

    with pytest.raises(ValueError, match="makes no tokens of the text in 'en'"):
        calibrate(make_tokenizer(cls=Deaf), "en", allow_short=True)
    with pytest.raises(ValueError, match=r"tokenizer drops the separator '\\n'"):
        calibrate(make_tokenizer(cls=Deaf), "en", separator="\n")


def test_ids_beyond_the_tokenizer():
    class Small(PreTrainedTokenizerFast):
        def __len__(self):
            return 50

    with pytest.raises(ValueError, match=r"gives the id \d+ but has only 50 entries"):
        calibrate(make_tokenizer(cls=Small))


def test_from_ids():
    found = from_ids({"sw": [[1, 2, 3], [4, 5]], "en": np.arange(4)[None]}, seq_len=4)
    assert found.ids["sw"].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert found.ids["en"].tolist() == [[0, 1, 2, 3]]
    assert found.tokens == {"sw": 5, "en": 4}
    assert [count for _, count in found.sequences("sw")] == [4, 1]
    assert (found.set_name, found.seed) == ("sw+en", None)
    assert found.table().splitlines()[1].split() == ["sw", "5", "5", "2", "2", "0", "-", "-", "0"]
    tensors = from_ids({"sw": [torch.tensor([1, 2, 3, 4, 5])], "en": [[0, 1, 2, 3]]}, seq_len=4)
    assert tensors.fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({}, "No ids were given"),
        ({"en": []}, "no ids for 'en'"),
        ({"en": [[]]}, "no ids for 'en'"),
        ({"english": [[1]]}, "Unknown language 'english'"),
        ({"en": [[1, -1]]}, "ids of 'en' hold -1; an id is 0 or more"),
        ({"en": [[1.5]]}, "ids of 'en' are not all integers"),
    ],
)
def test_bad_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        from_ids(ids, seq_len=4)
    with pytest.raises(ValueError, match="seq_len is 0"):
        from_ids(ids, seq_len=0)
