import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcalib.languages import LanguageSet, language, language_set, languages, set_names

AYA23 = [
    *("ar", "cs", "de", "el", "en", "es", "fa", "fr", "he", "hi", "id", "it", "ja", "ko", "nl"),
    *("pl", "pt", "ro", "ru", "tr", "uk", "vi", "zh"),
]
TEN = ["en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha"]


def test_catalogue():
    codes = [entry.code for entry in languages()]
    assert codes[-2:] == ["code", "math"]
    assert codes[:-2] == sorted(codes[:-2])
    assert len(codes) == 219
    assert [entry.code for entry in languages() if entry.kind == "text"] == ["code", "math"]
    assert not language("code").benchmarks
    for code in {*TEN, *AYA23}:
        entry = language(code)
        assert entry.flores
        assert entry.mc4
        assert entry.wikipedia == code
        assert {"belebele", "sib200"} <= entry.benchmarks.keys()


def test_a_language():
    hebrew = language("he")
    assert hebrew.name == "Hebrew"
    assert (hebrew.script, hebrew.family, hebrew.tier) == ("Hebr", "Afro-Asiatic", 3)
    assert (hebrew.flores, hebrew.mc4, hebrew.wikipedia) == ("heb_Hebr", "iw", "he")
    assert hebrew.right_to_left


@pytest.mark.parametrize(
    ("benchmark", "codes"),
    [
        ("belebele", TEN),
        ("xnli", ["en", "fr", "sw", "zh"]),
        ("xstorycloze", ["en", "sw", "zh"]),
        ("global_mmlu", ["en", "fr", "sw", "zh", "yo"]),
        ("global_mmlu_full", ["en", "fr", "sw", "zh", "yo", "ig", "ha"]),
        ("afrixnli", [code for code in TEN if code != "zh"]),
        ("afrimmlu", [code for code in TEN if code != "zh"]),
    ],
)
def test_benchmarks_of_the_ten(benchmark, codes):
    assert [code for code in TEN if benchmark in language(code).benchmarks] == codes


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mathe", "'math' (Mathematics)"),
        ("german", "'de' (German)"),
        ("Swahilli", "'sw' (Swahili)"),
        ("zho_Hans", "'zh' (Chinese)"),
        ("iw", "'he' (Hebrew)"),
        ("no", "'nb' (Norwegian Bokmål)"),
    ],
)
def test_unknown_language(given, meant):
    with pytest.raises(ValueError) as error:
        language(given)
    assert str(error.value) == (
        f"Unknown language '{given}'. Did you mean {meant}? "
        "The command 'mlcalib languages' lists the 219 languages."
    )


def test_unknown_language_with_none_near():
    with pytest.raises(ValueError, match=r"^Unknown language '\?\?'\. The command"):
        language("??")


def test_builtin_sets():
    assert set_names() == [
        *("aya23", "command-r", "en", "fr", "multi", "multi10", "multimix", "sw", "xh", "zh")
    ]
    for name in ("en", "fr", "sw", "zh", "xh"):
        assert language_set(name) == LanguageSet(name, {name: 1})
    assert list(language_set("multi").weights) == ["en", "fr", "sw", "zh", "xh"]
    assert list(language_set("multi10").weights) == TEN
    assert list(language_set("multimix").weights) == [*TEN, "code", "math"]
    assert list(language_set("aya23").weights) == AYA23
    assert len(AYA23) == 23
    assert list(language_set("command-r").weights) == [
        *("ar", "de", "en", "es", "fr", "it", "ja", "ko", "pt", "zh")
    ]
    for name in set_names():
        found = language_set(name)
        assert found.name == name
        assert len(set(found.weights.values())) == 1
        assert math.isclose(sum(found.weights.values()), 1)


@pytest.mark.parametrize(
    ("spec", "name", "weights"),
    [
        ("en,sw", "en+sw", {"en": 0.5, "sw": 0.5}),
        (" st ", "st", {"st": 1}),
        ("en:0.5, sw:0.5", "en+sw", {"en": 0.5, "sw": 0.5}),
        ("en:3,sw:1", "en0.75+sw0.25", {"en": 0.75, "sw": 0.25}),
        ("zh,zh-Hant", "zh+zh-Hant", {"zh": 0.5, "zh-Hant": 0.5}),
        ("en : 75, code : 25", "en0.75+code0.25", {"en": 0.75, "code": 0.25}),
        ("zu:7", "zu", {"zu": 1}),
    ],
)
def test_spelled_out_sets(spec, name, weights):
    assert language_set(spec) == LanguageSet(name, weights)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "mutli10",
            r"set or language 'mutli10'\. Did you mean 'multi10'\? The sets are aya23, .*zh",
        ),
        ("Zulu", r"Did you mean 'zu' \(isiZulu\)\?"),
        ("", "The set '' has an empty entry"),
        ("en,multi", "Unknown language 'multi'"),
        ("en,,sw", "The set 'en,,sw' has an empty entry"),
        ("en,sw,en", "names 'en' twice"),
        ("en:1,sw", "gives weights to some languages only"),
        ("en:1,sw:", "weight of 'sw' in the set 'en:1,sw:' is '', which is not a number"),
        ("en:1,sw:many", "is 'many', which is not a number"),
        ("en:1,sw:0", r"weight of 'sw' in the set 'en:1,sw:0' is 0.0; a weight must be a positive"),
        ("en:1,sw:-1", "is -1.0; a weight must be a positive, finite number"),
        ("en:1,sw:inf", "is inf; a weight"),
        ("en:nan", "is nan; a weight"),
        (":1", "Unknown language ''"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        language_set(spec)


def test_set_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("source: a friend\nweights: {en: 1, 'sw': 3}\n")
    assert language_set(str(file)) == LanguageSet("mine", {"en": 0.25, "sw": 0.75})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[en, sw]", "has no weights"),
        ("weights: [en, sw]", "has no weights"),
        ("weights: {}", "names no language"),
        ("weights: {en: 1, en: 2}", "'en' is there twice"),
        ("weights: {en: 1", "not valid YAML"),
        ("weights: {en: '1'}", "weight of 'en' in the set 'mine' is '1'"),
        ("weights: {en: true}", "is True; a weight"),
        ("weights: {no: 1}", "has the language False, which YAML does not read as text"),
        ("weights: {en: 1}\ntokens: 5", "has the key 'tokens'; only"),
        ("weights: {xx: 1}", "Unknown language 'xx'"),
    ],
)
def test_bad_set_file(tmp_path, content, message):
    file = tmp_path / "mine.yml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        language_set(str(file))


def test_set_file_is_missing_or_not_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The set file '.*gone.yaml' does not exist"):
        language_set(str(tmp_path / "gone.yaml"))
    (tmp_path / "bad.yaml").write_bytes(b"weights: {en: \xff}")
    with pytest.raises(ValueError, match="not valid YAML"):
        language_set(str(tmp_path / "bad.yaml"))


def test_set_file_with_the_name_of_another_set(tmp_path):
    file = tmp_path / "multi.yaml"
    file.write_text("weights: {en: 1, fr: 1, sw: 1, zh: 1, xh: 1}")
    assert language_set(str(file)) == language_set("multi")
    file.write_text("weights: {en: 1, fr: 1}")
    with pytest.raises(ValueError, match=r"has the name of the set 'multi'.*rename"):
        language_set(str(file))


weights = st.dictionaries(st.sampled_from(TEN), st.floats(1e-6, 1e6), min_size=1, max_size=len(TEN))


@given(weights, st.integers(1, 10**9))
def test_split_is_exact(weights, total):
    chosen = LanguageSet("x", weights)
    counts = chosen.split(total)
    assert list(counts) == list(weights)
    assert sum(counts.values()) == total
    whole = sum(map(Fraction, chosen.weights.values()))
    for code, count in counts.items():
        assert abs(count - total * Fraction(chosen.weights[code]) / whole) < 1


@given(st.lists(st.sampled_from(TEN), min_size=1, unique=True), st.integers(1, 10**6))
def test_equal_shares_leave_the_rest_to_the_first(codes, total):
    counts = list(LanguageSet("x", dict.fromkeys(codes, 1)).split(total).values())
    each, rest = divmod(total, len(codes))
    assert counts == [each + (index < rest) for index in range(len(codes))]


def test_split_of_nothing():
    with pytest.raises(ValueError, match="0 tokens was asked for; ask for 1 or more"):
        language_set("en").split(0)
