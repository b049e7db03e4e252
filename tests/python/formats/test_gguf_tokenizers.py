"""The tokenizer in a GGUF file."""

import json
from hashlib import sha256

import gguf
import pytest
from small_models import tiny_model
from small_tokenizer import make_tokenizer
from test_gguf import GGUF, small, values, written
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlcalib.formats import _gguf_pre_tokenizers
from mlcalib.formats._gguf_tokenizer import _REGEXES

TEXT = "The market opens 1234 times; soko hufunguliwa, 市场 — don't!\n\n  Les acheteurs"


def tokenizer_with(pre_tokenizer, template=None):
    tokenizer = make_tokenizer(template)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
} | {
    name: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), BYTES])
    for regex, name in _REGEXES.items()
}


@pytest.mark.parametrize("name", sorted(SPLITS))
@pytest.mark.parametrize("template", [None, "<s> $A", "$A </s>"])
def test_byte_level_tokenizers(name, template, tmp_path):
    tokenizer = tokenizer_with(SPLITS[name], template)
    written(small("llama"), "Q4_0", tmp_path / "out", tokenizer)
    found = values(tmp_path / "out/model.gguf")
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", name)
    assert found["tokenizer.ggml.add_bos_token"] == (template == "<s> $A")
    assert found["tokenizer.ggml.add_eos_token"] == (template == "$A </s>")
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert len(found["tokenizer.ggml.tokens"]) == 400
    assert found["tokenizer.ggml.tokens"][-1] == "[PAD399]"
    types = found["tokenizer.ggml.token_type"]
    assert types[0] == gguf.TokenType.CONTROL
    assert types[-1] == gguf.TokenType.UNUSED
    if name == "gpt-2":  # what transformers makes of any file
        back = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
        plain = {"add_special_tokens": False}
        assert back(TEXT, **plain).input_ids == tokenizer(TEXT, **plain).input_ids


def test_a_name_that_llama_cpp_knows_by_the_ids_of_a_text(monkeypatch, tmp_path):
    """Two names may split alike, and be known apart by other habits of theirs."""
    ids = make_tokenizer().encode(_gguf_pre_tokenizers._TEXT)
    digest = sha256(str(ids).encode()).hexdigest()
    monkeypatch.setitem(_gguf_pre_tokenizers._NAMES, digest, "falcon3")
    written(small("llama"), "Q4_0", tmp_path / "out", make_tokenizer())
    assert values(tmp_path / "out/model.gguf")["tokenizer.ggml.pre"] == "falcon3"


def sentencepiece_like(prefix):
    """A BPE with byte fallback, as transformers makes of Llama 2's SentencePiece model."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "a"), ("b", "c"), ("▁a", "bc"), ("▁", "b")]
    pieces += ["▁a", "bc", "▁abc", "▁b", "▁", "a", "b", "c"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.Prepend("▁")] if prefix else []) + steps
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("prefix", [True, False])
def test_tokenizers_with_byte_fallback_have_scores_in_the_order_of_merges(prefix, tmp_path):
    written(small("llama"), "Q4_0", tmp_path / "out", sentencepiece_like(prefix))
    found = values(tmp_path / "out/model.gguf")
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] == prefix
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    assert [scores[token] for token in ("▁a", "bc", "▁abc", "▁b")] == [0, -1, -2, -3]
    types = found["tokenizer.ggml.token_type"]
    assert types[3:259] == [gguf.TokenType.BYTE] * 256


def test_what_llama_cpp_would_read_otherwise_is_refused_before_any_forward():
    config = small("llama").config
    with pytest.raises(NotImplementedError, match="Whitespace"):
        GGUF.check_model(config, "LlamaForCausalLM", tokenizer_with(pre_tokenizers.Whitespace()))
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1.0, "factor": 2.0}
    with pytest.raises(NotImplementedError, match="'dynamic'"):
        GGUF.check_model(config, "LlamaForCausalLM", make_tokenizer())
    sliding = tiny_model("qwen2").config
    with pytest.raises(NotImplementedError, match="sliding"):
        GGUF.check_model(sliding, "Qwen2ForCausalLM", make_tokenizer())


def test_a_tokenizer_of_a_gguf_file_is_written_as_that_file_has_it(tmp_path):
    model = small("llama")
    tokenizer = tokenizer_with(SPLITS["smollm"])
    written(model, "Q4_0", tmp_path / "first", tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "first", gguf_file="model.gguf")
    again.name_or_path = str(tmp_path / "first/model.gguf")  # as mlcalib's loader sets it
    written(model, "Q4_0", tmp_path / "second", again)
    first, second = (values(tmp_path / name / "model.gguf") for name in ("first", "second"))
    kept = {key for key in first if key.startswith("tokenizer.")}
    assert len(kept) > 5
    assert json.dumps([first[key] for key in sorted(kept)]) == json.dumps(
        [second[key] for key in sorted(kept)]
    )
