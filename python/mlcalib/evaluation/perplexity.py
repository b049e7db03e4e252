"""Perplexity and bits per byte of running text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mlcalib.calibration_sets import Stream
from mlcalib.errors import named

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DocumentScores(NamedTuple):
    """Sums over the documents of one text, in their order; JSON types.

    Attributes:
        loss: sum of the token losses of each, in nats.
        tokens: scored tokens of each.
        bytes: UTF-8 bytes that these add.
    """

    loss: list[float]
    tokens: list[int]
    bytes: list[int]


@dataclass(frozen=True)
class Scores:
    """Losses of the scored tokens of one text.

    Attributes:
        loss: [n] float64, -ln p of each token given those before it in its window.
        byte_counts: [n] int64, bytes of text that each adds.
        document: [n] int64, the document each is of.
    """

    loss: Tensor
    byte_counts: Tensor
    document: Tensor

    @property
    def token_loss(self) -> tuple[float, float | None]:
        """Mean loss in nats, and its standard error."""
        return self._ratio(torch.ones_like(self.loss))

    @property
    def perplexity(self) -> tuple[float, float | None]:
        """Exponential of the mean loss; the error by the delta method."""
        mean, error = self.token_loss
        return math.exp(mean), None if error is None else math.exp(mean) * error

    @property
    def bits_per_byte(self) -> tuple[float, float | None]:
        """Loss in bits over UTF-8 bytes: comparable between tokenizers."""
        mean, error = self._ratio(self.byte_counts.double())
        return mean / math.log(2), None if error is None else error / math.log(2)

    def by_document(self) -> DocumentScores:
        """Return the sums over each document of which a token was scored."""
        documents, index = torch.unique(self.document, return_inverse=True)
        sums = [
            torch.zeros(len(documents), dtype=values.dtype).index_add_(0, index, values).tolist()
            for values in (self.loss, torch.ones_like(self.byte_counts), self.byte_counts)
        ]
        return DocumentScores(*sums)

    def _ratio(self, size: Tensor) -> tuple[float, float | None]:
        """Σ loss / Σ size, with the error of a ratio of document sums.

        Tokens of one document are not independent, so documents are what is drawn; a single
        document has no error.
        """
        ratio = float(self.loss.sum() / size.sum())
        documents, index = torch.unique(self.document, return_inverse=True)
        count = len(documents)
        if count < 2:
            return ratio, None
        residuals = torch.zeros(count, dtype=torch.float64)
        residuals.index_add_(0, index, self.loss - ratio * size)
        variance = float((residuals**2).sum()) * count / (count - 1)
        return ratio, math.sqrt(variance) / float(size.sum())


def perplexity_of(
    model: "PreTrainedModel", texts: Mapping[str, Stream], *, tokens: int, seq_len: int
) -> dict[str, Scores]:
    """Score a live model in several languages.

    Args:
        model: see ``score``.
        texts: language → text: what ``eval_text`` gives.
        tokens: tokens to score of each.
        seq_len: context.

    Raises:
        ValueError: see ``score``; names the language.
    """
    found = {}
    for code, text in texts.items():
        with named(f"language '{code}'"):
            found[code] = score(model, text, tokens=tokens, seq_len=seq_len)
    return found


@torch.inference_mode()
def score(model: "PreTrainedModel", stream: Stream, *, tokens: int, seq_len: int) -> Scores:
    """Score the first ``tokens`` tokens of a text after its very first.

    Windows of ``seq_len`` tokens follow each other without overlap; each token is predicted from
    those before it in its window, the first of a window from the last of the window before.

    Args:
        model: predicts the next token; called with [1, seq_len], the last window padded.
        stream: the text.
        tokens: tokens to score.
        seq_len: context.

    Raises:
        ValueError: the text is too short, or the model gives NaN.
    """
    if len(stream.ids) < tokens + 1:
        raise ValueError(
            f"{tokens:,} tokens are to be scored, but the text has {len(stream.ids):,}, of which "
            f"the first cannot be scored; ask for at most {len(stream.ids) - 1:,} tokens "
            "(--tokens) or give more text."
        )
    losses = []
    for start in range(0, tokens, seq_len):
        count = min(seq_len, tokens - start)
        window = torch.zeros(1, seq_len, dtype=torch.int64)  # what follows `count` has no effect
        window[0, :count] = stream.ids[start : start + count]
        targets = stream.ids[start + 1 : start + count + 1]
        logits = model(input_ids=window, use_cache=False).logits[0, :count]
        losses.append(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none"))
    loss = torch.cat(losses).double()
    if not torch.isfinite(loss).all():
        raise ValueError("the model gives NaN or Inf; it is damaged, or its dtype overflows.")
    scored = slice(1, tokens + 1)
    return Scores(loss, stream.byte_counts[scored], stream.document[scored])
