"""Corpora in translation, by random models of the three kinds."""

import json

import pytest
import torch
from small_translators import make_m2m100, make_madlad, make_nllb, say_always
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

import mlcalib
from mlcalib.common import compat
from mlcalib.corpora import Tally, _translator, open_corpus
from mlcalib.corpora._translator import Translator
from mlcalib.languages import language

KINDS = {"nllb": make_nllb, "m2m100": make_m2m100, "madlad": make_madlad}
TEXTS = ["The market opens. The buyers wait!\n\nIt rains", "One day at home"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in KINDS.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLCALIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def one_thread():
    """These models are so small that threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text/en").mkdir(parents=True)
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "text/en/calib.jsonl").write_text("\n".join(rows))
    (tmp_path / "text/sw").mkdir()
    (tmp_path / "text/sw/calib.txt").write_text("Soko hufunguliwa\n")
    return tmp_path / "text"


def spec(model, text, more=""):
    return f"translated:{model}?source=en&corpus=files:{text}{more}"


def read(model, text, code="sw", seed=None, more=""):
    tally = Tally()
    documents = open_corpus(spec(model, text, more)).documents(code, "calib", seed)
    return list(documents.read(tally)), tally


def translate(folder, text, code="sw"):
    translator = Translator(str(folder))
    return translator.translate(text, translator.direction(language("en"), language(code)))


def by_hand(folder, sentence, prefix, source, start):
    """What the model's own documentation says to do, one sentence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if source:
        tokenizer.src_lang = source
    batch = tokenizer(prefix + sentence, return_tensors="pt")
    ids = AutoModelForSeq2SeqLM.from_pretrained(folder).generate(
        **batch,
        forced_bos_token_id=start(tokenizer) if start else None,
        num_beams=1,
        do_sample=False,
        max_new_tokens=3 * batch["input_ids"].shape[1] + 32,
    )
    return " ".join(tokenizer.decode(ids[0, 1 + bool(start) :], skip_special_tokens=True).split())


@pytest.mark.parametrize(
    ("kind", "prefix", "source", "start"),
    [
        ("nllb", "", "eng_Latn", lambda tokenizer: tokenizer.convert_tokens_to_ids("swh_Latn")),
        ("m2m100", "", "en", lambda tokenizer: tokenizer.get_lang_id("sw")),
        ("madlad", "<2sw> ", None, None),
    ],
)
def test_each_kind_is_told_what_to_do(models, monkeypatch, kind, prefix, source, start):
    monkeypatch.setattr(_translator, "BATCH", 1)
    sentences = ["The market opens.", "The buyers wait!", "It rains"]
    wanted = [by_hand(models[kind], item, prefix, source, start) for item in sentences]
    assert all(wanted)
    assert len(set(wanted)) > 1
    found = translate(models[kind], "The market opens. The buyers wait!\n\nIt rains")
    assert found.text == f"{wanted[0]} {wanted[1]}\n\n{wanted[2]}"


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_translated_once(models, text, kind, cache, monkeypatch):
    first, tally = read(models[kind], text)
    assert len(first) == 2
    assert tally.read == 2
    files = list(cache.rglob("*.json"))
    assert len(files) == 2
    assert {file.parent.name for file in files} == {"en-sw"}
    # From the cache: the model's weights are not even loaded.
    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", None)
    again, counted = read(models[kind], text)
    assert (again, counted) == (first, tally)
    files[0].write_text("{")
    with pytest.raises(ValueError, match=r"translation in '.*json' is damaged .*; remove it"):
        read(models[kind], text)


def test_another_model_direction_or_text_is_another_translation(text, cache, tmp_path):
    one, two = (make_nllb(tmp_path / f"nllb{seed}", seed) for seed in (1, 2))
    assert read(one, text) != read(two, text)
    read(one, text, "zh")
    assert len({file.parent for file in cache.rglob("*.json")}) == 3
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in one.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    read(copied, text)
    assert len({file.parent for file in cache.rglob("*.json")}) == 3


def test_only_what_is_asked_for_is_translated(models, text, cache):
    documents = open_corpus(spec(models["nllb"], text)).documents("sw", "calib", 0)
    next(iter(documents))
    assert len(list(cache.rglob("*.json"))) == 1


def test_the_source_and_what_into_leaves_out_are_not_translated(models, text):
    assert read(models["nllb"], text, "en")[0] == TEXTS
    assert read(models["nllb"], text, "sw", more="&into=zh")[0] == ["Soko hufunguliwa"]
    assert read(models["nllb"], text, "zh", more="&into=zh,sw")[0] != []


def test_long_sentences_are_translated_in_parts(models, monkeypatch):
    seen = []
    generate = Translator._generate

    def spy(self, pieces, direction):
        seen.extend(pieces)
        return generate(self, pieces, direction)

    monkeypatch.setattr(Translator, "_generate", spy)
    monkeypatch.setattr(_translator, "PIECE", 12)
    translate(models["nllb"], "one two three four five six. " + "x" * 50)
    assert "".join(seen).replace(" ", "") == "onetwothreefourfivesix." + "x" * 50
    assert max(map(len, seen)) <= 12
    assert "four" in "\n".join(seen)  # a cut is at a space where there is one


def test_chinese_sentences_have_no_space_before_or_after(models, monkeypatch):
    monkeypatch.setattr(_translator, "BATCH", 1)
    one, other = (translate(models["nllb"], item, "zh").text for item in ("It rains.", "A day."))
    assert translate(models["nllb"], "It rains. A day.", "zh").text == one + other
    pieces = list(Translator(str(models["nllb"]))._pieces("市场开门。买家等候。"))
    assert pieces == ["市场开门。", "买家等候。"]


def test_what_is_lost_is_counted(tmp_path, text):
    endless, mute = (make_nllb(tmp_path / name) for name in ("endless", "mute"))
    say_always(endless, 5)
    say_always(mute, 2)
    texts, tally = read(endless, text)
    assert set(texts[1]) == {"a"}
    assert tally.dropped == {"translated sentences cut off at their greatest length": 4}
    texts, tally = read(mute, text)
    assert texts == []
    assert tally.dropped == {
        "documents whose translation is blank": 2,
        "sentences whose translation is blank": 4,
    }


def test_conversations_are_translated_message_by_message(models, text):
    messages = [{"from": "human", "value": "It rains."}, {"from": "gpt", "value": "One day."}]
    (text / "en/calib.jsonl").write_text(json.dumps({"conversations": messages}))
    (document,), _ = read(models["madlad"], text)
    assert [message["role"] for message in document] == ["user", "assistant"]
    wanted = [translate(models["madlad"], message["value"]).text for message in messages]
    assert [message["content"] for message in document] == wanted


def test_the_record_names_the_model(models, text, tokenizer):
    calibration = mlcalib.calibration(
        tokenizer, "en,sw", spec(models["nllb"], text), tokens=60, seq_len=16
    )
    assert calibration.tokens == {"en": 30, "sw": 30}
    record = json.loads(json.dumps(calibration.describe()))
    assert record["corpus"] == spec(models["nllb"], text)
    origin = record["languages"]["sw"]["origin"]
    assert origin["model"] == str(models["nllb"])
    assert origin["model_version"].startswith("sha256 ")
    assert origin["translated_from"] == "en"
    assert origin["text"] == record["languages"]["en"]["origin"]


def test_a_model_on_the_hub_is_named_by_its_commit(models, monkeypatch):
    translator = Translator("facebook/nllb-200-distilled-600M")
    folder, asked = str(models["nllb"]), []
    monkeypatch.setattr(compat, "hub_commit", lambda name: asked.append(name) or "c0ffee")
    read = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **_: read(folder))
    assert translator.version == "facebook/nllb-200-distilled-600M at commit c0ffee"
    assert asked == ["facebook/nllb-200-distilled-600M"]


@pytest.mark.parametrize(
    ("model", "more", "code", "message"),
    [
        ("nllb", "", "xh", r"does not know isiXhosa \('xh'\).* neither xho_Latn"),
        ("m2m100", "", "st", r"does not know .*\('st'\)"),
        ("madlad", "", "fr", r"nor <2fr> \(MADLAD-400\)"),
        ("nllb", "&into=tlh", "sw", "Unknown language 'tlh'"),
        ("nllb", "&to=sw", "sw", "Unknown option of the corpus 'translated' 'to'"),
        ("nllb", "&into", "sw", "has the option 'into'; write 'OPTION=VALUE'"),
    ],
)
def test_refusals(models, text, model, more, code, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(spec(models[model], text, more)).documents(code, "calib")


def test_bad_specs(text, tmp_path):
    with pytest.raises(ValueError, match="write 'translated:MODEL"):
        open_corpus("translated:x?source=en")
    with pytest.raises(FileNotFoundError, match="no translation model at '/nowhere'"):
        open_corpus(spec("/nowhere", text))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama', which does not translate"):
        open_corpus(spec(tmp_path, text)).documents("sw", "calib")


def test_the_languages_are_found_by_their_other_codes(models):
    assert translate(models["madlad"], "It rains", "he").text  # <2iw>
    assert torch.is_inference_mode_enabled() is False
