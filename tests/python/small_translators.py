"""Random translation models, small enough to make in the blink of an eye; one of each kind."""

import io
import json

import sentencepiece
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;!?'0123456789。"


def make_nllb(folder, seed=0):
    """NLLB: M2M100's architecture, languages as in FLORES-200."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = NllbTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=[],
        additional_special_tokens=["eng_Latn", "swh_Latn", "zho_Hans"],
    )
    return _save(_m2m100(len(tokenizer), seed), tokenizer, folder)


def make_m2m100(folder, seed=0):
    """M2M100: languages as ``__en__``; a SentencePiece tokenizer that is not a fast one."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS), "the market opens", "soko hufunguliwa"]),
        model_writer=trained,
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "vocab.json", folder / "sentencepiece.bpe.model"
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocabulary = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    files[0].write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    files[1].write_bytes(trained.getvalue())
    tokenizer = M2M100Tokenizer(*map(str, files))
    languages = len(tokenizer.lang_token_to_id)
    return _save(_m2m100(tokenizer.encoder_size + languages, seed), tokenizer, folder)


def make_madlad(folder, seed=0):
    """MADLAD-400: T5's architecture, told the language by ``<2sw>``."""
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(
        vocab=[*scored, *((letter, -3.0) for letter in LETTERS)],
        extra_ids=0,
        additional_special_tokens=["<2en>", "<2sw>", "<2zh>", "<2iw>"],
    )
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return _save(T5ForConditionalGeneration(config), tokenizer, folder)


def say_always(folder, token):
    """Make an M2M100 model say one token, whatever it reads."""
    model = M2M100ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        direction = torch.ones(model.config.d_model)
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.copy_(direction)
        model.model.shared.weight[token] = 10 * direction
    model.save_pretrained(folder)


def _m2m100(vocabulary, seed):
    torch.manual_seed(seed)
    config = M2M100Config(
        vocab_size=vocabulary,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=1024,
        init_std=0.5,
    )
    return M2M100ForConditionalGeneration(config)


def _save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
