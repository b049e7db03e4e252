"""The tokenizer's part of a GGUF file.

A tokenizer is written right or not at all: llama.cpp knows how text is split before merging by a
name (``tokenizer.ggml.pre``), which is told here from what the tokenizer makes of one text, as
llama.cpp's converter does, or from its own pre-tokenizer.
"""

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from mlcalib.common.optional import optional
from mlcalib.formats._gguf_pre_tokenizers import known_name

_log = logging.getLogger(__name__)

# How text is split → llama.cpp's name (``llama_vocab::impl::load`` in src/llama-vocab.cpp).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_REGEXES = {_SPLIT % r"\p{N}{1,3}": "llama-bpe", _SPLIT % r"\p{N}": "qwen2"}
_SPACES = ("Prepend", "Replace")  # of SentencePiece's spaces, which llama.cpp knows
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Refuse a tokenizer that llama.cpp would split text by otherwise.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the embedding.

    Raises:
        NotImplementedError: says what it has.
        ValueError: a token beyond the embedding; names it.
    """
    if _source_file(tokenizer) is not None:
        return
    description = _description(tokenizer)
    _kind(tokenizer, description)
    _check_normalizer(description["normalizer"])
    last, token = max((number, token) for token, number in tokenizer.get_vocab().items())
    if last >= vocab_size:
        raise ValueError(
            f"The tokenizer has the token {last} ({token!r}), but the model's embedding has "
            f"{vocab_size} rows, and a GGUF file needs a row for each token. Save in another "
            "format, or give the tokenizer that the model was trained with."
        )


def _check_normalizer(normalizer: dict[str, Any] | None) -> None:
    """Refuse what changes most texts before they are split; warn of what changes some."""
    for step in (normalizer or {}).get("normalizers", [normalizer] if normalizer else []):
        if step["type"] == "NFC":
            _log.warning(
                "The tokenizer composes text (NFC) before it splits it, and llama.cpp does not: "
                "text with combining marks, such as decomposed Yorùbá or Vietnamese, becomes other "
                "tokens there. Normalize such text before it reaches llama.cpp."
            )
        elif step["type"] not in _SPACES:
            raise NotImplementedError(
                f"The tokenizer changes text ({step['type']}) before it splits it, which llama.cpp "
                "does not: it would read other tokens. Save in another format."
            )


def add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Add tokens, merges or scores, special tokens and the chat template.

    A tokenizer that was read from a GGUF file is written as that file has it.

    Args:
        writer: a ``gguf.GGUFWriter``.
        tokenizer: a fast tokenizer of transformers.
        vocab_size: rows of the embedding; those without a token are named [PAD…].

    Raises:
        NotImplementedError, ValueError: as ``check_tokenizer``.
    """
    if (file := _source_file(tokenizer)) is not None:
        _copy(writer, file)
        return
    gguf = optional("gguf", "gguf", "writing GGUF")
    description = _description(tokenizer)
    model, pre = _kind(tokenizer, description)
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    added = {token["id"]: token["special"] for token in description["added_tokens"]}
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    types = [_token_type(gguf, number, names, added) for number in range(vocab_size)]
    if model == "llama":
        ranks = _ranks(description["model"]["merges"])
        writer.add_token_scores([float(-ranks.get(token, 0)) for token in tokens])
        writer.add_add_space_prefix(_prefixes_space(description))
        types = [
            gguf.TokenType.BYTE if _BYTE_TOKEN.fullmatch(token) else kind
            for token, kind in zip(tokens, types, strict=True)
        ]
    writer.add_token_types(types)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=model == "gpt2", n_vocab=vocab_size)
    # What transformers adds by itself is what llama.cpp shall add.
    ids = tokenizer("x").input_ids
    special.add_special_token["bos"] = ids[0] == tokenizer.bos_token_id
    special.add_special_token["eos"] = ids[-1] == tokenizer.eos_token_id
    special.add_to_gguf(writer, quiet=True)


def _source_file(tokenizer: Any) -> Path | None:
    path = Path(tokenizer.name_or_path or "")
    return path if path.suffix == ".gguf" and path.is_file() else None


def _copy(writer: Any, file: Path) -> None:
    gguf = optional("gguf", "gguf", "writing GGUF")
    for field in gguf.GGUFReader(file).fields.values():
        if field.name.startswith("tokenizer."):
            kind, *parts = field.types
            sub_type = parts[-1] if parts else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)


def _description(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotImplementedError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; only those are written to GGUF"
        )
    description: dict[str, Any] = json.loads(backend.to_str())
    return description


def _kind(tokenizer: Any, description: dict[str, Any]) -> tuple[str, str]:
    """Return llama.cpp's names of the tokenizer's model and of how it splits text."""
    model = description["model"]
    if model["type"] != "BPE":
        raise NotImplementedError(f"a {model['type']} tokenizer is not written to GGUF yet")
    if model.get("byte_fallback"):
        return "llama", "default"
    if (name := known_name(tokenizer)) is not None:
        return "gpt2", name
    before = description["pre_tokenizer"] or {"type": "none"}
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt2", "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "gpt2", "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in _REGEXES and steps[0]["behavior"] == "Isolated":
            return "gpt2", _REGEXES[pattern]
    raise NotImplementedError(
        f"llama.cpp's name for how this tokenizer splits text ({', '.join(kinds)}) is not known; "
        "save with --format dense and use llama.cpp's convert_hf_to_gguf.py"
    )


def _token_type(gguf: Any, number: int, names: dict[int, str], added: dict[int, bool]) -> Any:
    if number not in names:
        return gguf.TokenType.UNUSED
    if number in added:
        return gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED
    return gguf.TokenType.NORMAL


def _ranks(merges: list[Any]) -> dict[str, int]:
    """Return the rank of the first merge that makes each token: SentencePiece's order."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        token = "".join(merge) if isinstance(merge, list) else merge.replace(" ", "")
        ranks.setdefault(token, rank)
    return ranks


def _prefixes_space(description: dict[str, Any]) -> bool:
    """Return whether the tokenizer puts a space before a text."""
    text = json.dumps([description["normalizer"], description["pre_tokenizer"]])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or "always" in text
