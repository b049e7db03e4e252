"""What a notebook calls."""

import json

import pytest
import torch

import mlcalib
from mlcalib.languages import LanguageSet

TEXTS = {"en": ["the first buyers " * 40], "sw": ["wanunuzi wa kwanza " * 40]}


def test_import_is_light():
    import subprocess
    import sys

    code = "import sys, mlcalib; print('transformers' in sys.modules, 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_lists_of_strings_in_equal_shares(tokenizer):
    calibration = mlcalib.calibration(tokenizer, corpus=TEXTS, tokens=101, seq_len=16)
    assert calibration.tokens == {"en": 51, "sw": 50}
    assert calibration.set_name == "en+sw"


@pytest.mark.parametrize("languages", ["sw:3,en:1", LanguageSet("mine", {"sw": 3, "en": 1})])
def test_shares_of_lists_of_strings(tokenizer, languages):
    calibration = mlcalib.calibration(tokenizer, languages, TEXTS, tokens=100, seq_len=16)
    assert calibration.tokens == {"sw": 75, "en": 25}


def test_lists_of_ids_are_used_whole():
    calibration = mlcalib.calibration(None, corpus={"en": [[1, 2, 3], [4, 5]]}, seq_len=4)
    assert calibration.tokens == {"en": 5}
    assert torch.equal(calibration.ids["en"][0], torch.tensor([1, 2, 3, 4]))


def test_a_corpus_by_name_and_a_model_for_its_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    calibration = mlcalib.calibration(tmp_path, tokens=300, seq_len=16)
    assert calibration.set_name == "multi10"
    assert set(calibration.tokens.values()) == {30}


@pytest.mark.parametrize(
    "languages", [None, "en:2,sw:1", LanguageSet("mine", {"sw": 3, "en": 0.1, "ha": 1 / 3})]
)
def test_a_calibration_set_is_made_again_from_its_arguments(tokenizer, tmp_path, languages):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    made = mlcalib.calibration(
        tmp_path, languages, tokens=301, seq_len=16, seed=4, separator="eos", allow_short=True
    )
    again = mlcalib.calibration(**json.loads(json.dumps(made.arguments)))
    assert again.fingerprint == made.fingerprint
    assert again.arguments == made.arguments == made.describe()["arguments"]


def test_what_was_given_in_memory_has_no_arguments(tokenizer):
    assert mlcalib.calibration(tokenizer, corpus=TEXTS, tokens=100, seq_len=16).arguments == {}
    assert mlcalib.calibration(None, corpus={"en": [[1, 2]]}, seq_len=16).arguments == {}
    assert mlcalib.calibration(tokenizer, tokens=100, seq_len=16).arguments == {}


def test_every_language_of_the_sample_fills_the_demo(tokenizer):
    from mlcalib.corpora import open_corpus

    sample = open_corpus("sample")
    for code in mlcalib.calibration(tokenizer, "multimix", tokens=1200, seq_len=16).ids:
        assert len(list(sample.documents(code, "calib"))) >= 20
        assert len(list(sample.documents(code, "eval"))) >= 8


def test_the_sample_is_parallel():
    from mlcalib.corpora import open_corpus

    sample = open_corpus("sample")
    for split, lines in (("calib", 77), ("eval", 30)):
        for code in ["en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha"]:
            assert len(list(sample.documents(code, split))) == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corpus": TEXTS}, "without one of tokens=.* e.g. tokens=40960"),
        ({"corpus": ["text"], "tokens": 4}, "corpus is a list, expected .*corpus={'en': .'a doc"),
        ({"corpus": {"en": ["text"], "sw": [[1, 2]]}, "tokens": 4}, "some languages have text"),
        ({"corpus": TEXTS, "tokens": 4, "languages": "fr"}, "No text was given in 'fr'"),
        ({"corpus": {"en": "text"}, "tokens": 4}, "give a list of documents"),
        ({"corpus": TEXTS, "tokens": 4, "tokens_per_language": 4}, "give one: tokens="),
        ({"corpus": {"en": [[1, 2]]}, "languages": "en"}, "languages= was given with token ids"),
        ({"corpus": {"en": [[1, 2]]}, "tokens": 2}, "tokens= was given with token ids"),
        ({"corpus": {"en": ["text", []]}, "tokens": 4}, "'en' has an empty list .index 1."),
    ],
)
def test_bad_arguments(tokenizer, arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"(?i){message}"):
        mlcalib.calibration(tokenizer, **{"seq_len": 16, **arguments})


@pytest.mark.parametrize(
    ("languages", "said"),
    [(TEXTS, "a dict of en, sw,"), (["en", "sw"], "a list of en, sw,"), (3, "a int,")],
)
def test_documents_in_the_place_of_languages(tokenizer, languages, said):
    for call in (
        lambda: mlcalib.calibration(tokenizer, languages),
        lambda: mlcalib.calibration(tokenizer, languages, tokens=40),
        lambda: mlcalib.evaluate([], languages),
    ):
        with pytest.raises(TypeError, match=f"languages is {said}.*keyword: corpus=.'en': "):
            call()


def test_a_live_model_needs_its_tokenizer():
    from small_models import tiny_llama

    with pytest.raises(ValueError, match="pass tokenizer="):
        mlcalib.quantize(tiny_llama(), method="rtn")


def test_what_plug_ins_are_made_of_is_public():
    assert set(mlcalib.__all__) <= set(dir(mlcalib)) | {"PackedConfig"}
    for name in (
        *("Adapter", "Format", "Grid", "GridSpec"),
        *("QuantizedLinear", "Quantizer", "QuantizerOptions"),
    ):
        assert name in mlcalib.__all__
