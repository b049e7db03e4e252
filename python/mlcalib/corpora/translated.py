"""Text that a translation model makes from text in another language."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mlcalib.common.checked import as_type
from mlcalib.common.files import atomic_file
from mlcalib.common.progress import progress_bar
from mlcalib.common.safetensors_read import read_json
from mlcalib.corpora import _translator
from mlcalib.corpora._documents import Conversation, Document, Documents, Tally
from mlcalib.corpora._translator import Direction, Translation, Translator
from mlcalib.corpora.base import Split, open_corpus, registry
from mlcalib.languages import language as find_language


@registry.register
class TranslatedCorpus:
    """``translated:MODEL?source=en&corpus=SPEC``: another corpus in machine translation.

    Each document of the source language, or each message of a conversation, is translated sentence
    by sentence, greedily, when it is needed. All languages get the same documents in the same
    order. Text in the source language, and in languages that ``into`` does not name, is that of the
    other corpus.

    Translations are kept in ``$MLCALIB_CACHE`` (by default ``~/.cache/mlcalib``). A text is not
    translated again as long as the model's files and the two languages are the same.

    Args:
        argument: the model, a folder or a name on the hub: NLLB, M2M100, MADLAD-400 or a similar
            one. (The tokenizer of M2M100 needs the package sentencepiece.)
        source: the language that is translated.
        corpus: the corpus with text in this language, e.g. ``wikipedia`` or ``files:PATH``, with
            ``%26`` for an ``&``.
        into: the languages to translate into, e.g. ``st,xh``; by default all.

    Raises:
        ValueError: the model, the source or the corpus was not given, or is unknown.
        FileNotFoundError: the model or the folder does not exist.
    """

    def __init__(self, argument: str, source: str = "", corpus: str = "", into: str = "") -> None:
        if not (argument and source and corpus):
            raise ValueError(
                "The corpus 'translated' needs a model, a source language and a corpus; write "
                "'translated:MODEL?source=en&corpus=wikipedia'."
            )
        self.name = f"translated:{argument}?source={source}&corpus={corpus}"
        self.name += f"&into={into}" if into else ""
        self._model = argument
        self._source = find_language(source)
        self._into = [find_language(code.strip()).code for code in into.split(",") if code]
        self._corpus = open_corpus(corpus)
        self._translator = Translator(argument)

    def documents(self, language: str, split: Split, seed: int | None = None) -> Documents:
        """See ``Corpus.documents``.

        Raises:
            ValueError: the model does not know the language.
        """
        if language == self._source.code or (self._into and language not in self._into):
            return self._corpus.documents(language, split, seed)
        source = self._corpus.documents(self._source.code, split, seed)
        direction = self._translator.direction(self._source, find_language(language))
        folder = self._cache(language)

        def read(tally: Tally) -> Iterator[Document]:
            what = f"translating {self._source.code} into {language}"
            progress = progress_bar(source.read(tally), desc=what, unit=" documents", disable=None)
            for document in progress:  # shown on a terminal only
                translated = self._translated(document, direction, folder, tally)
                if translated is not None:
                    yield translated

        origin = {
            "translated_from": self._source.code,
            "model": self._model,
            "model_version": self._translator.version,
            "text": source.origin,
        }
        return Documents(read, origin)

    def _translated(
        self, document: Document, direction: Direction, folder: Path, tally: Tally
    ) -> Document | None:
        texts = [document] if isinstance(document, str) else [m["content"] for m in document]
        found = [self._translate(text, direction, folder) for text in texts]
        losses = {
            "translated sentences cut off at their greatest length": [t.cut_off for t in found],
            "sentences whose translation is blank": [t.blank for t in found],
        }
        for what, counts in losses.items():
            if any(counts):
                tally.dropped[what] += sum(counts)
        if not any(translation.text for translation in found):
            tally.drop("documents whose translation is blank", texts[0])
            return None
        if isinstance(document, str):
            return found[0].text
        translated = zip(document, found, strict=True)
        return Conversation(
            ({**message, "content": each.text} for message, each in translated),
            getattr(document, "tools", None),
        )

    def _translate(self, text: str, direction: Direction, folder: Path) -> Translation:
        file = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        if file.is_file():
            return read_translation(file)
        translation = self._translator.translate(text, direction)
        with atomic_file(file) as stream:
            json.dump(translation._asdict(), stream, ensure_ascii=False)
        return translation

    def _cache(self, language: str) -> Path:
        root = Path(os.environ.get("MLCALIB_CACHE") or "~/.cache/mlcalib").expanduser()
        how = [self._translator.version, _translator.PIECE, _translator.BATCH]
        key = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]
        return root / "translations" / key / f"{self._source.code}-{language}"


def read_translation(file: Path) -> Translation:
    """Read a translation that was kept.

    Raises:
        ValueError: it is damaged; names it.
    """
    try:
        return as_type(read_json(file), Translation)
    except ValueError as error:
        raise ValueError(f"The translation in '{file}' is damaged ({error}); remove it.") from error
