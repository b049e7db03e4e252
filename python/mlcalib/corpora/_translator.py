"""A translation model: NLLB, M2M100, MADLAD-400 or another of their kind."""

import hashlib
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlcalib.common import compat
from mlcalib.common.sha256 import file_sha256
from mlcalib.languages import Language

PIECE = 128  # source tokens; the models were trained on sentences
BATCH = 8

# The full stops and question marks of Latin, Devanagari, Arabic and Ethiopic; those of Chinese and
# Japanese have no space after them.
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026\u0964\u061f\u06d4\u1362])\s+|(?<=[\u3002\uff01\uff1f])")
_WITHOUT_SPACES = ("Hans", "Hant", "Jpan")


class Direction(NamedTuple):
    """How a model is told what to translate into what.

    Attributes:
        source: what its tokenizer calls the source language; None where it need not know.
        prefix: what is put before the text.
        start: the id of the token that the translation begins with; None where there is none.
        joiner: what stands between sentences of the translation.
    """

    source: str | None
    prefix: str
    start: int | None
    joiner: str


class Translation(NamedTuple):
    """A text in translation.

    Attributes:
        text: the translation, line by line.
        cut_off: pieces whose translation was stopped at its greatest length.
        blank: pieces whose translation is blank.
    """

    text: str
    cut_off: int
    blank: int


class Translator:
    """A translation model of transformers, loaded when first needed; on the CPU.

    Args:
        name: a folder, or a model's name on the hub.

    Raises:
        FileNotFoundError: ``name`` looks like a path and there is nothing.
    """

    def __init__(self, name: str) -> None:
        path = Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not path.is_dir():
            raise FileNotFoundError(f"There is no translation model at '{path}'.")
        self._name = str(path) if path.is_dir() else name

    @cached_property
    def version(self) -> str:
        """Name and commit of a model on the hub; the sha256 of the files of one in a folder."""
        folder = Path(self._name)
        if not folder.is_dir():
            return f"{self._name} at commit {self._commit or 'unknown'}"
        digest = hashlib.sha256()
        for file in sorted(item for item in folder.iterdir() if item.is_file()):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(bytes.fromhex(file_sha256(file)))
        return f"sha256 {digest.hexdigest()}"

    def direction(self, source: Language, target: Language) -> Direction:
        """Find out how this model is told to translate from one language into another.

        NLLB has a token for each language, called as in FLORES-200, M2M100 one called ``__sw__``;
        MADLAD-400 is told the target alone, by ``<2sw> `` before the text.

        Raises:
            ValueError: the model does not know one of the languages.
        """
        vocabulary = {**self._tokenizer.get_vocab(), **compat.language_tokens(self._tokenizer)}
        joiner = "" if target.script in _WITHOUT_SPACES else " "
        if prefix := _first(vocabulary, "<2{}>", target):
            return Direction(None, f"{prefix} ", None, joiner)
        if source.flores in vocabulary and target.flores in vocabulary:
            return Direction(source.flores, "", vocabulary[target.flores], joiner)
        tokens = [_first(vocabulary, "__{}__", entry) for entry in (source, target)]
        if tokens[0] and tokens[1]:
            return Direction(tokens[0].strip("_"), "", vocabulary[tokens[1]], joiner)
        known = tokens[0] or source.flores in vocabulary or _first(vocabulary, "<2{}>", source)
        unknown = target if known else source
        raise ValueError(
            f"The model '{self._name}' does not know {unknown.name} ('{unknown.code}'): its "
            f"vocabulary has neither {unknown.flores} (as NLLB) nor __{unknown.code}__ (M2M100) "
            f"nor <2{unknown.code}> (MADLAD-400). Use a model that translates it."
        )

    def translate(self, text: str, direction: Direction) -> Translation:
        """Translate a text sentence by sentence, greedily; lines stay lines.

        A sentence of more than ``PIECE`` tokens is translated in parts, so that nothing of it is
        lost. A piece's translation ends at its end-of-sequence token, or at three times the piece's
        tokens and 32 more, and is then counted as cut off.
        """
        if direction.source is not None:
            self._tokenizer.src_lang = direction.source
        lines = [list(self._pieces(line)) for line in text.split("\n")]
        pieces = [piece for line in lines for piece in line]
        done: list[tuple[str, bool]] = []
        for start in range(0, len(pieces), BATCH):
            done += self._generate(pieces[start : start + BATCH], direction)
        left = iter(done)
        translated = [
            direction.joiner.join(part for _ in line if (part := next(left)[0])) for line in lines
        ]
        cut_off, blank = sum(cut for _, cut in done), sum(not part for part, _ in done)
        return Translation("\n".join(translated).strip(), cut_off, blank)

    def _pieces(self, line: str) -> Iterator[str]:
        for sentence in _SENTENCE_END.split(line):
            if sentence.strip():
                yield from self._parts(sentence.strip())

    def _parts(self, sentence: str) -> Iterator[str]:
        if len(sentence) < 2 or self._length(sentence) <= PIECE:
            yield sentence
            return
        middle = len(sentence) // 2
        space = min(
            (match.start() for match in re.finditer(r"\s", sentence)),
            key=lambda index: abs(index - middle),
            default=middle,
        )
        for half in (sentence[:space].strip(), sentence[space:].strip()):
            if half:
                yield from self._parts(half)

    def _length(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    @torch.inference_mode()
    def _generate(self, pieces: list[str], direction: Direction) -> list[tuple[str, bool]]:
        """Return for each piece its translation, and whether that was cut off."""
        from transformers import GenerationConfig

        texts = [direction.prefix + piece for piece in pieces]
        batch = self._tokenizer(texts, return_tensors="pt", padding=True)
        config = self._model.generation_config
        ends = config.eos_token_id
        options = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=3 * batch["input_ids"].shape[1] + 32,
            forced_bos_token_id=direction.start,
            decoder_start_token_id=config.decoder_start_token_id,
            eos_token_id=ends,
            pad_token_id=config.pad_token_id,
        )
        rows = self._model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=options,
        )
        end = torch.tensor(ends).view(1, -1)
        # The first token starts the decoder, and is the end token in NLLB and M2M100; the next is
        # the language, which M2M100's tokenizer does not know to be special.
        rows = rows[:, 1 if direction.start is None else 2 :]
        ended = (rows[:, :, None] == end).flatten(1).any(1)
        parts = self._tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            (" ".join(part.split()), not end)
            for part, end in zip(parts, ended.tolist(), strict=True)
        ]

    @cached_property
    def _commit(self) -> str | None:
        """The commit of a model on the hub; None for a folder. Refuses what does not translate."""
        from transformers import AutoConfig

        commit = None if Path(self._name).is_dir() else compat.hub_commit(self._name)
        config = AutoConfig.from_pretrained(self._name, revision=commit, trust_remote_code=False)
        if not config.is_encoder_decoder:
            raise ValueError(
                f"'{self._name}' is a model of type '{config.model_type}', which does not "
                "translate; give NLLB, M2M100, MADLAD-400 or another of their kind."
            )
        return commit

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self._name, revision=self._commit, trust_remote_code=False
        )

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForSeq2SeqLM

        model, told = AutoModelForSeq2SeqLM.from_pretrained(
            self._name, revision=self._commit, trust_remote_code=False, output_loading_info=True
        )
        if missing := sorted(told["missing_keys"]):
            raise ValueError(
                f"'{self._name}' lacks {len(missing)} tensors that the model needs, such as "
                f"{missing[0]}; is the download complete?"
            )
        return model.eval()


def _first(vocabulary: dict[str, int], form: str, language: Language) -> str | None:
    codes = (language.code, language.code.replace("-", "_"), language.mc4, language.wikipedia)
    return next((t for code in codes if code and (t := form.format(code)) in vocabulary), None)
