"""Scores models language by language; scores that the cache has are not measured again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlcalib.calibration_sets import Stream
from mlcalib.common.errors import named
from mlcalib.common.sha256 import tensors_sha256
from mlcalib.evaluation.batching import Batches
from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.perplexity import Logits, Scores, score
from mlcalib.evaluation.reference import Reference, head_of, recorded_score
from mlcalib.evaluation.subject import Subject
from mlcalib.results.rows import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATES = "states"
"""The name, in the cache, of the hidden states that others are compared with (large files)."""

_Key = dict[str, Any]


@dataclass(frozen=True)
class _Losses:
    """What is kept of a model's own scores: nats of each token."""

    loss: list[float]


@dataclass(frozen=True)
class _Distance:
    """What is kept of its distance from the reference, of each token."""

    kl: list[float]
    agrees: list[int]


class Scorer:
    """Scores models one after another, and with ``fidelity`` against the first of them.

    The scores of a text are kept as soon as they are known. A model is not even loaded if all of
    its scores are known. Only the head of the first model stays in memory.

    Args:
        tokens: the number of tokens to score in each text.
        seq_len: the context, in tokens.
        fidelity: whether to measure the divergence of all other models from the first.
        allow_short: whether to score a text that has fewer tokens.
        cache: where scores are kept, or None.

    Attributes:
        tokens, seq_len: see above.
        first: language → the scores of the first model.
        fidelity: see above.
    """

    def __init__(
        self,
        *,
        tokens: int,
        seq_len: int,
        fidelity: bool = False,
        allow_short: bool = False,
        cache: Cache | None = None,
    ) -> None:
        self.first: dict[str, Scores] = {}
        self.tokens, self.seq_len = tokens, seq_len
        self.fidelity = fidelity
        self._allow_short = allow_short
        self._cache = cache
        self._batches = Batches()
        self._reference: Subject | None = None
        self._texts: dict[str, Stream] = {}  # that the reference was scored on
        self._head: PreTrainedModel | None = None
        self._states: dict[str, Tensor] = {}

    def scores(self, subject: Subject, texts: Mapping[str, Stream]) -> Iterator[tuple[str, Scores]]:
        """Score a model on texts (language → text), and yield each language when it is done.

        Raises:
            ValueError: see ``score``; or, with ``fidelity``, the model has other tokens than the
                first. The message names language and model.
        """
        if self.fidelity and self._reference is None:
            self._reference = subject
        compared = self.fidelity and subject is not self._reference
        if compared:
            self._prepare(subject, texts)
        for code, text in texts.items():
            with named(f"language '{code}', model {subject.name}"):
                if compared:
                    found = self._compared(subject, code, text)
                elif self.fidelity:
                    found = self.first[code] = self._recorded(subject, code, text)
                else:
                    found = self._plain(subject, code, text)
            yield code, found

    def release(self, subject: Subject) -> None:
        """Unload a model whose scores are complete."""
        if subject is self._reference and subject.loaded:
            self._head = head_of(subject.model)
        subject.unload()

    def _plain(self, subject: Subject, code: str, text: Stream) -> Scores:
        key = self._key(subject, code, text)
        if (known := self._known(key)) is None:
            return self._keep(key, self._score(subject, text))
        return self._scores(text, known)

    def _recorded(self, subject: Subject, code: str, text: Stream) -> Scores:
        """Score the reference, and keep what others are compared with."""
        self._texts[code] = text
        if (known := self._known(self._key(subject, code, text))) is not None:
            return self._scores(text, known)
        return self._record(subject, code, text)

    def _record(self, subject: Subject, code: str, text: Stream) -> Scores:
        key = self._key(subject, code, text)
        scoring = {"tokens": self._count(text), "seq_len": self.seq_len}
        run = partial(recorded_score, subject.model, text, **scoring)
        found, states = self._batches.run(subject.model, self.seq_len, run)
        if self._cache is None:
            self._states[code] = states
        else:
            self._cache.put_tensor({**key, "task": STATES}, states)
        return self._keep(key, found)

    def _prepare(self, subject: Subject, texts: Mapping[str, Stream]) -> None:
        """Record the reference where that is needed, before another model is loaded.

        Its own scores may be known from a time when nothing was compared with it.
        """
        first = self._reference
        assert first is not None
        recorded = False
        for code, text in texts.items():
            with named(f"language '{code}', model {subject.name}"):
                known = self._texts[code]
                if text.begin != known.begin or not torch.equal(text.ids, known.ids):
                    raise ValueError(
                        f"its tokenizer makes other tokens of the text than that of {first.name}; "
                        "next-token distributions are comparable over one vocabulary only."
                    )
            states = {**self._key(first, code, text), "task": STATES}
            if self._cache is None or self._cache.has_tensor(states):
                continue
            if None in self._known_of(subject, code, text):
                with named(f"language '{code}', model {first.name}"):
                    self._record(first, code, text)
                recorded = True
        if recorded:
            self.release(first)

    def _compared(self, subject: Subject, code: str, text: Stream) -> Scores:
        """Score a model against the reference."""
        known, apart = self._known_of(subject, code, text)
        if known is not None and apart is not None:
            return self._scores(text, known, apart)
        assert self._reference is not None
        against = self._key(self._reference, code, text)
        reference = Reference(self._head_of_first(), lambda code: self._states_of(against, code))
        found = self._score(subject, text, reference.logits(code))
        key = self._key(subject, code, text)
        return self._keep(key, found, self._divergence_key(subject, code, text))

    def _score(self, subject: Subject, text: Stream, reference: Logits | None = None) -> Scores:
        scoring: dict[str, Any] = {"tokens": self._count(text), "seq_len": self.seq_len}
        run = partial(score, subject.model, text, **scoring, reference=reference)
        return self._batches.run(subject.model, self.seq_len, run)

    def _count(self, text: Stream) -> int:
        """Return how many tokens of a text are scored."""
        return min(self.tokens, len(text.ids) - 1) if self._allow_short else self.tokens

    def _head_of_first(self) -> "PreTrainedModel":
        """Return the reference's head; never loads it beside a model that is being compared."""
        if self._head is None:
            assert self._reference is not None
            self._head = head_of(self._reference.model)
            self._reference.unload()
        return self._head

    def _states_of(self, key: _Key, code: str) -> Tensor:
        if self._cache is None:
            return self._states[code]
        return self._cache.get_tensor({**key, "task": STATES})

    def _key(self, subject: Subject, code: str, text: Stream) -> _Key:
        if self._cache is None:
            return {}
        tokens = self._count(text)
        return {
            "task": "perplexity",
            "language": code,
            "model": subject.fingerprint(self._cache),
            "text": _text_sha256(text, tokens),
            "tokens": tokens,
            "seq_len": self.seq_len,
            "versions": versions(),
            **({"begin": list(text.begin)} if text.begin else {}),
        }

    def _divergence_key(self, subject: Subject, code: str, text: Stream) -> _Key:
        assert self._reference is not None
        against = self._key(self._reference, code, text)
        key = self._key(subject, code, text)
        return {**key, "task": "fidelity", "reference": against.get("model")}

    def _known(self, key: _Key) -> _Losses | None:
        return None if self._cache is None else self._cache.get(key, _Losses)

    def _known_of(
        self, subject: Subject, code: str, text: Stream
    ) -> tuple[_Losses | None, _Distance | None]:
        """Return what is known of a model's own scores, and of its distance from the reference."""
        if self._cache is None:
            return None, None
        own = self._known(self._key(subject, code, text))
        return own, self._cache.get(self._divergence_key(subject, code, text), _Distance)

    def _keep(self, key: _Key, found: Scores, divergence: _Key | None = None) -> Scores:
        if self._cache is not None:
            self._cache.put(key, {"loss": found.loss.tolist()})
            if divergence is not None and found.kl is not None and found.agrees is not None:
                value = {"kl": found.kl.tolist(), "agrees": found.agrees.int().tolist()}
                self._cache.put(divergence, value)
        return found

    def _scores(self, text: Stream, own: _Losses, apart: _Distance | None = None) -> Scores:
        """Return scores as they were before they were kept."""
        scored = slice(1, self._count(text) + 1)
        return Scores(
            torch.tensor(own.loss, dtype=torch.float64),
            text.byte_counts[scored],
            text.document[scored],
            None if apart is None else torch.tensor(apart.kl, dtype=torch.float64),
            None if apart is None else torch.tensor(apart.agrees, dtype=torch.bool),
        )


def _text_sha256(text: Stream, tokens: int) -> str:
    parts = {"ids": text.ids, "byte_counts": text.byte_counts, "document": text.document}
    return tensors_sha256({name: part[: tokens + 1] for name, part in parts.items()})
