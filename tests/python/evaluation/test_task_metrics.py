"""BLEU and chrF++ against the sacrebleu command, ROUGE-L by hand, language confusion by script."""

import math
import subprocess
import sys
from statistics import fmean, stdev

import pytest

pytest.importorskip("sacrebleu")

from mlcalib.evaluation.tasks.confusion import Verdict, judge, measurable
from mlcalib.evaluation.tasks.prompts import Prompts
from mlcalib.evaluation.tasks.scoring import score
from mlcalib.evaluation.tasks.text_metrics import (
    bleu,
    bleu_tokenizer,
    chrf,
    chrf_of_each,
    mean,
    rouge_of_each,
    sentencepiece_encoder,
    spbleu,
)
from mlcalib.languages import language

TEXTS = {
    "sw": (
        ["Soko hufunguliwa kabla ya jua.", "Wanunuzi wa kwanza wako barabarani .", ""],
        ["Soko hufunguliwa kabla ya jua kuchomoza.", "Wanunuzi wa kwanza wanasubiri.", "Ndio."],
    ),
    "zh": (
        ["市场在日出前开门。", "第一批买家在路边等 3 个人。"],
        ["市场在日出之前就开门了。", "第一批买家已经在路边等候。"],
    ),
    "ja": (
        ["市場は日の出前に開きます。", "最初の客が待っている。"],
        ["市場は日の出の前に開く。", "最初の買い手が道端で待っています。"],
    ),
    "th": (["ตลาดเปิดก่อนพระอาทิตย์ขึ้น"], ["ตลาดเปิดก่อนรุ่งสาง"]),
    "ar": (
        ["يفتح السوق قبل الشروق، والمشترون ينتظرون."],
        ["يفتح السوق أبوابه قبل شروق الشمس، والمشترون ينتظرون."],
    ),
}


@pytest.mark.parametrize("code", TEXTS)
def test_bleu_and_chrf_are_those_of_the_command(code, tmp_path):
    outputs, references = TEXTS[code]
    for name, lines in (("out", outputs), ("ref", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tokenizer = bleu_tokenizer(language(code))
    for found, options in (
        (bleu(outputs, references, language(code)), ["-m", "bleu", "-tok", tokenizer, "--force"]),
        (chrf(outputs, references), ["-m", "chrf", "--chrf-word-order", "2"]),
    ):
        command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "out", "-b", "-w", "6", *options]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert found.value == pytest.approx(float(told.stdout), abs=1e-6)


def test_bleu_says_its_tokenizer():
    names = {code: bleu(*TEXTS[code], language(code)).metric for code in TEXTS}
    assert names == {
        "sw": "bleu_13a",
        "zh": "bleu_zh",
        "ja": "bleu_char",
        "th": "bleu_char",
        "ar": "bleu_13a",
    }


def test_the_error_of_a_corpus_score_is_that_of_its_bootstrap():
    references = [f"the market number {k} opens before sunrise on day {k % 7}" for k in range(60)]
    outputs = [text if k % 2 else f"a market {k} opens" for k, text in enumerate(references)]
    found = chrf(outputs, references)
    # Nearly the mean of sentence scores here, so nearly the error of a mean.
    each = chrf_of_each(outputs, references)
    assert found.stderr == pytest.approx(stdev(each) / math.sqrt(60), rel=0.25)
    assert chrf(["one"], ["two"]).stderr is None


def test_chrf_of_each_is_the_score_of_that_text_alone():
    outputs, references = TEXTS["sw"]
    alone = [chrf([a], [b]).value for a, b in zip(outputs, references, strict=True)]
    assert chrf_of_each(outputs, references) == pytest.approx(alone)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    lines = [line for texts in TEXTS.values() for side in texts for line in side if line]
    (folder / "text").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "small"),
        vocab_size=450,
        minloglevel=2,
        hard_vocab_limit=False,
        byte_fallback=True,
    )
    return folder / "small.model"


def test_spbleu_is_sacrebleus_with_the_same_file(pieces, tmp_path, monkeypatch):
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.tokenizers import tokenizer_spm

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sacrebleu_tokenizer_spm.model").write_bytes(pieces.read_bytes())
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    outputs, references = TEXTS["sw"]
    wanted = BLEU(tokenize="flores101", force=True).corpus_score(outputs, [references]).score
    found = spbleu(outputs, references, sentencepiece_encoder(pieces))
    assert found.value == pytest.approx(wanted)
    assert wanted > 1


def test_a_wrong_sentencepiece_model_is_named(tmp_path):
    pytest.importorskip("sentencepiece")
    with pytest.raises(FileNotFoundError, match="no SentencePiece model at"):
        sentencepiece_encoder(tmp_path / "none")
    (tmp_path / "bad").write_text("no model")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        sentencepiece_encoder(tmp_path / "bad")


def test_translations_have_spbleu_where_there_is_a_tokenizer(pieces):
    outputs, references = TEXTS["sw"]
    asked = Prompts(
        "flores_from_en",
        "translation",
        language("sw"),
        language("sw"),
        outputs,
        references,
        (),
        1,
    )
    found = score(asked, outputs, sentencepiece_encoder(pieces))
    assert [each.metric for each in found.scores] == ["chrf++", "bleu_13a", "spbleu"]
    assert found.missing == {}


@pytest.mark.parametrize(
    ("code", "output", "reference", "lcs", "lengths"),
    [
        ("en", "the cat sat there", "The cat, there!", 3, (4, 3)),
        ("ar", "السوق مفتوح الآن", "السوق الآن", 2, (3, 2)),
        ("hi", "बाज़ार खुला है", "बाज़ार बंद है", 2, (3, 3)),
        ("zh", "市场开门。", "市场已开", 3, (4, 4)),
        ("am", "ገበያው ክፍት ነው", "ሌላ ነገር", 0, (3, 2)),
    ],
)
def test_rouge_in_each_script(code, output, reference, lcs, lengths):
    precision, recall = lcs / lengths[0], lcs / lengths[1]
    expected = 0 if not lcs else 200 * precision * recall / (precision + recall)
    assert rouge_of_each([output], [reference], language(code)) == [pytest.approx(expected)]


def test_a_mean_and_its_error():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    found = mean("acc", values)
    assert (found.value, found.n) == (fmean(values), 5)
    assert found.stderr == pytest.approx(stdev(values) / math.sqrt(5))
    assert mean("acc", [1.0]).stderr is None


GOOD = {
    "ar": "هذا جواب طويل مكتوب باللغة العربية فقط",
    "am": "ይህ በአማርኛ ብቻ የተጻፈ ረዘም ያለ መልስ ነው",
    "bn": "এটি শুধুমাত্র বাংলা ভাষায় লেখা একটি দীর্ঘ উত্তর",
    "el": "Αυτή είναι μια μεγάλη απάντηση στα ελληνικά μόνο",
    "he": "זו תשובה ארוכה שנכתבה רק בשפה העברית",
    "hi": "यह केवल हिन्दी भाषा में लिखा गया एक लंबा उत्तर है",
    "ja": "これは日本語だけで書かれた少し長い答えです。",
    "ka": "ეს არის გრძელი პასუხი დაწერილი მხოლოდ ქართულად",
    "km": "នេះជាចម្លើយវែងដែលសរសេរជាភាសាខ្មែរ",
    "ko": "이것은 한국어로만 쓰여진 조금 긴 답변입니다 여러분",
    "ru": "Это длинный ответ только на русском языке",
    "ta": "இது தமிழ் மொழியில் மட்டும் எழுதப்பட்ட நீண்ட பதில்",
    "te": "ఇది తెలుగు భాషలో మాత్రమే రాసిన పొడవైన సమాధానం",
    "th": "นี่คือคำตอบที่ค่อนข้างยาวซึ่งเขียนเป็นภาษาไทย",
    "zh": "这是一个完全用中文写的比较长的回答。",
}
LATIN = {
    "en": "This is a long answer that is in English only",
    "fr": "Ceci est une longue réponse écrite en français seulement",
    "ha": "Wannan doguwar amsa ce da aka rubuta da harshen Hausa kawai",
    "ig": "Nke a bụ azịza dị ogologo nke e dere naanị n'asụsụ Igbo",
    "st": "Ena ke karabo e telele e ngotsweng ka puo ya Sesotho feela",
    "sw": "Hili ni jibu refu lililoandikwa kwa lugha ya Kiswahili pekee",
    "yo": "Èyí jẹ́ ìdáhùn gígùn tí a kọ ní èdè Yorùbá nìkan",
}
SLIP = "\nThis line was written in English by mistake"


@pytest.mark.parametrize("code", GOOD)
def test_language_confusion_in_each_script(code):
    text = GOOD[code]
    responses = [text, f"{text}{SLIP}", f"{text} computer {text}", f"{text} IBM {text}", "?"]
    assert judge(responses, language(code)) == [
        Verdict(lines=True, words=True),
        Verdict(lines=False, words=None),
        Verdict(lines=True, words=False),
        Verdict(lines=True, words=True),
        Verdict(lines=None, words=None),
    ]


@pytest.mark.parametrize("code", LATIN)
def test_language_confusion_in_latin_script(code):
    text = LATIN[code]
    wrong = LATIN["fr" if code == "en" else "en"]
    assert judge([text, f"{text}\n{wrong}", f"{text}\nIBM", wrong], language(code)) == [
        Verdict(lines=True, words=None),
        Verdict(lines=False, words=None),
        Verdict(lines=True, words=None),
        Verdict(lines=False, words=None),
    ]


def confused(code, outputs):
    about = language(code)
    asked = Prompts("language_confusion", "confusion", about, about, outputs, [], (), 1)
    return score(asked, outputs, None)


def test_rates_leave_out_what_is_too_short():
    text = GOOD["ru"]
    found = confused("ru", [text, f"{text}{SLIP}", f"{text} computer", "нет", text])
    rates = {each.metric: (each.value, each.n) for each in found.scores}
    assert rates == {"line_pass_rate": (0.75, 4), "word_pass_rate": (pytest.approx(2 / 3), 3)}
    assert found.items == [1.0, 0.0, 1.0, None, 1.0]


def test_what_cannot_be_measured_says_why():
    assert confused("fr", [LATIN["fr"]]).missing == {"word_pass_rate": "not measured: Latin script"}
    assert "five words" in confused("ru", ["нет"]).missing["line_pass_rate"]
    reason = "not measured: the detector does not know the language"
    assert measurable(language("tn")) == reason
    found = confused("tn", ["Karabo e e telele e kwadilwe ka Setswana fela"])
    assert found.scores == []
    assert found.missing == {"line_pass_rate": reason, "word_pass_rate": reason}


def test_what_follows_a_next_question_is_not_the_answer():
    assert judge([f"{LATIN['sw']}\nQ: {LATIN['en']}"], language("sw"))[0].lines
