"""What the catalogue says of each language, against those who made the codes."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER

from mlcalib.corpora import open_corpus
from mlcalib.languages import language, languages

SHARED = Path(__file__).parents[4] / "shared" / "data" / "eval"
NATURAL = [entry for entry in languages() if entry.kind == "natural"]

FAMILIES = {
    "Afro-Asiatic", "Austroasiatic", "Austronesian", "Aymaran", "Constructed", "Creole",
    "Dravidian", "Hmong-Mien", "Indo-European", "Isolate", "Japonic", "Kartvelian", "Koreanic",
    "Kra-Dai", "Mongolic", "Niger-Congo", "Nilo-Saharan", "Quechuan", "Sino-Tibetan", "Tupian",
    "Turkic", "Uralic",
}  # fmt: skip

# ISO 15924 code → how Unicode names most of the script's letters
SCRIPTS = {
    "Arab": "ARABIC", "Armn": "ARMENIAN", "Beng": "BENGALI", "Cyrl": "CYRILLIC",
    "Deva": "DEVANAGARI", "Ethi": "ETHIOPIC", "Geor": "GEORGIAN", "Grek": "GREEK",
    "Gujr": "GUJARATI", "Guru": "GURMUKHI", "Hang": "HANGUL", "Hans": "CJK", "Hant": "CJK",
    "Hebr": "HEBREW", "Jpan": "HIRAGANA", "Khmr": "KHMER", "Knda": "KANNADA", "Laoo": "LAO",
    "Latn": "LATIN", "Mlym": "MALAYALAM", "Mymr": "MYANMAR", "Nkoo": "NKO", "Olck": "OL",
    "Orya": "ORIYA", "Sinh": "SINHALA", "Taml": "TAMIL", "Telu": "TELUGU", "Tfng": "TIFINAGH",
    "Thai": "THAI", "Tibt": "TIBETAN",
}  # fmt: skip

# benchmark → its tasks in lm-eval; the group is what a language is called there
TASKS = {
    "afrimgsm": r"afrimgsm_([a-z]{3})_prompt_1",
    "afrimmlu": r"afrimmlu_direct_([a-z]{3})_prompt_1",
    "afrixnli": r"afrixnli_([a-z]{3})_prompt_1",
    "belebele": r"belebele_([a-z]{3}_[A-Z][a-z]{3})",
    "global_mmlu": r"global_mmlu_([a-z]{2,3})",
    "global_mmlu_full": r"global_mmlu_full_([a-z]{2,3})",
    "m_mmlu": r"m_mmlu_([a-z]{2,3})",
    "mgsm": r"mgsm_direct_([a-z]{2,3})",
    "mmmlu": r"mmmlu_([a-z]{2}_[a-z]{2})",
    "xcopa": r"xcopa_([a-z]{2,3})",
    "xnli": r"xnli_([a-z]{2,3})",
    "xstorycloze": r"xstorycloze_([a-z]{2,3})",
    "xwinograd": r"xwinograd_([a-z]{2,3})",
}
# Valencian, which shares its code with Catalan, and Vai: no other source has them.
WITHOUT_LANGUAGE = {"xnli": {"va"}, "afrimgsm": {"vai"}}
# The catalogue goes by the data sets: lm-eval has some of their languages or none.
NOT_BY_LM_EVAL = {"sib200", "xlsum", "language_confusion"}
# (benchmark's own code, ours) where neither follows from the other
RENAMED = {("jp", "ja"), ("swa", "sw"), ("orm", "om")}


@pytest.fixture(scope="module")
def tasks():
    """Every name that lm-eval's command line takes; it is read off its YAML files, offline."""
    return TaskManager().all_tasks


def named(pattern, tasks):
    return {found[1] for name in tasks if (found := re.fullmatch(pattern, name))}


def codes_of(benchmark):
    return Counter(
        entry.benchmarks[benchmark] for entry in NATURAL if benchmark in entry.benchmarks
    )


@pytest.mark.parametrize("benchmark", TASKS)
def test_lm_eval_has_these_languages_and_no_others(tasks, benchmark):
    there = named(TASKS[benchmark], tasks)
    here = codes_of(benchmark)
    assert set(here) == there - WITHOUT_LANGUAGE.get(benchmark, set())
    assert set(here.values()) == {1}


def test_lm_eval_has_some_languages_of_the_others(tasks):
    sib200, xlsum = named(r"sib_([a-z]{3})_prompt_1", tasks), named(r"xlsum_(\w+)_prompt_1", tasks)
    assert len(sib200) > 50
    assert sib200 - {"swa"} <= {code[:3] for code in codes_of("sib200")}
    assert len(xlsum) > 10
    assert xlsum <= set(codes_of("xlsum"))


def test_every_benchmark_is_tested():
    named = {benchmark for entry in NATURAL for benchmark in entry.benchmarks}
    assert named == TASKS.keys() | NOT_BY_LM_EVAL
    assert len(codes_of("xlsum")) == 45
    assert len(codes_of("language_confusion")) == 15
    assert set(codes_of("sib200")) == {entry.flores for entry in NATURAL} - {None} | {"nqo_Nkoo"}


@pytest.mark.parametrize("entry", NATURAL, ids=lambda entry: entry.code)
def test_a_language_is_called_by_its_own_codes(entry):
    romanized = entry.code.partition("-")[2] == "Latn" and entry.flores is None
    base = language(entry.code.partition("-")[0])
    flores = f"{base.flores[:3]}_Latn" if romanized else entry.flores
    own = {entry.code, entry.mc4, flores, flores and flores[:3]}
    for benchmark, code in entry.benchmarks.items():
        if benchmark == "xlsum":  # English names
            assert code.partition("_")[0] in entry.name.lower()
        elif benchmark == "mmmlu":  # with a country
            assert code.partition("_")[0] == entry.code
        elif code != "nqo_Nkoo":
            assert code in own or (code, entry.code) in RENAMED, benchmark


def test_flores_codes_are_those_of_nllb():
    flores = [entry.flores for entry in NATURAL if entry.flores]
    assert len(flores) == len(set(flores)) == 204
    # NLLB lacks two, and has Santali under the wrong script.
    assert set(flores) - set(NLLB) == {"arb_Latn", "min_Arab", "sat_Olck"}
    assert set(NLLB) - set(flores) == {"sat_Beng"}
    for entry in NATURAL:
        assert entry.flores is None or entry.flores.endswith(f"_{entry.script}")


def test_codes_and_names_are_those_of_others():
    known = {entry.code: entry.name for entry in NATURAL}
    differ = {code for code, name in WHISPER.items() if known.get(code, "").lower() != name}
    # Norwegian is nb or nn, Javanese jv, Breton missing; Burmese and Nynorsk have other names.
    assert differ == {"no", "br", "jw", "my", "nn"}
    assert set(M2M100["m2m100"]) - set(known) == {"no", "br", "ns"}


@pytest.mark.parametrize("attribute", ["name", "flores", "mc4", "wikipedia"])
def test_no_two_languages_share(attribute):
    values = [getattr(entry, attribute) for entry in languages()]
    assert {count for value, count in Counter(values).items() if value} == {1}


def test_text_is_where_it_is_called_otherwise():
    def renamed(attribute):
        pairs = ((entry.code, getattr(entry, attribute)) for entry in NATURAL)
        return {code: there for code, there in pairs if there not in (code, None)}

    assert renamed("mc4") == {"he": "iw", "nb": "no", "tl": "fil"}
    assert renamed("wikipedia") == {"bho": "bh", "dik": "din", "nb": "no", "yue": "zh-yue"}
    assert len([entry for entry in NATURAL if entry.mc4]) == 102
    # An edition in two scripts belongs to one entry.
    for code in ("zh-Hant", "sr-Latn", "kr-Arab"):
        assert language(code).mc4 is language(code).wikipedia is None


def test_script_family_tier():
    assert {entry.script for entry in NATURAL} == SCRIPTS.keys()
    assert {entry.family for entry in NATURAL} == FAMILIES
    assert {entry.tier for entry in NATURAL} == set(range(6))
    # Class 5 and class 4 of Joshi et al., whole
    assert {entry.code for entry in NATURAL if entry.tier == 5} == {
        *("ar", "ar-Latn", "de", "en", "es", "fr", "ja", "zh", "zh-Hant")
    }
    assert {entry.code for entry in NATURAL if entry.tier == 4} == {
        *("ca", "cs", "eu", "fa", "fi", "hi", "hi-Latn", "hr", "hu", "it", "ko", "nl", "pl"),
        *("pt", "ru", "sr", "sr-Latn", "sv", "tr", "vi"),
    }
    for entry in NATURAL:  # classes go by language
        plain, _, script = entry.code.partition("-")
        assert script in ("", entry.script)
        assert (entry.family, entry.tier) == (language(plain).family, language(plain).tier)


def test_right_to_left():
    assert language("he").right_to_left
    assert language("ur").right_to_left
    assert not language("ur-Latn").right_to_left
    assert not language("code").right_to_left
    for entry in NATURAL:  # Unicode knows
        sample = next(
            letter
            for letter in map(chr, range(0x41, 0x10000))
            if unicodedata.name(letter, "").startswith(SCRIPTS[entry.script])
            and unicodedata.category(letter).startswith("L")
        )
        assert entry.right_to_left == (unicodedata.bidirectional(sample) in ("R", "AL"))


def commonest_script(text):
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    return Counter(names).most_common(1)[0][0]


@pytest.mark.parametrize("code", ["en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha"])
def test_script_of_the_sample(code):
    text = " ".join(open_corpus("sample").documents(code, "eval"))
    assert commonest_script(text) == SCRIPTS[language(code).script]


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")
def test_script_of_flores():
    by_flores = {entry.flores: entry for entry in NATURAL}
    files = sorted(SHARED.glob("flores200/*/dev.jsonl"))
    assert len(files) > 30
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        text = " ".join(json.loads(line)["sentence"] for line in lines)
        assert commonest_script(text) == SCRIPTS[by_flores[file.parent.name].script]


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")
@pytest.mark.parametrize(
    ("benchmark", "pattern"),
    [
        ("belebele", "belebele/*.jsonl"),
        ("sib200", "sib200/*.jsonl"),
        ("xnli", "xnli/??"),
        ("xcopa", "xcopa/??"),
        ("mgsm", "mgsm/??"),
        ("language_confusion", "language_confusion/*/*/*.jsonl"),
    ],
)
def test_folders_of_benchmarks(benchmark, pattern):
    there = {path.stem for path in SHARED.glob(pattern)}
    assert there
    assert there <= set(codes_of(benchmark))
