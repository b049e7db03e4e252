"""Scores each token of a text, in one forward for all metrics."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mlcalib.calibration_sets import (
    Stream,
    describe_separator,
    describe_windows,
)
from mlcalib.common.errors import named
from mlcalib.evaluation.batching import ROWS, Batches
from mlcalib.models.context import check_context
from mlcalib.models.device import input_device
from mlcalib.quantization.text_check import check_ids
from mlcalib.results.rows import ItemScores, Row, versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_TOKENS = 8192
"""Tokens that are scored per language where no number is asked for and the text has so many."""

Logits = Callable[[slice], Tensor]
"""Returns the logits of some windows of a text, [windows, seq_len, vocabulary]."""

_ROWS = 32  # of logits that are worked on at a time: bounded memory, and near the cache


class DocumentScores(NamedTuple):
    """Sums over each document of one text, in the order of the documents, in JSON types.

    Attributes:
        loss: the sum of the token losses, in nats.
        tokens: the number of scored tokens.
        bytes: the UTF-8 bytes that these tokens add.
    """

    loss: list[float]
    tokens: list[int]
    bytes: list[int]


@dataclass(frozen=True)
class Scores:
    """The scores of the tokens of one text.

    Attributes:
        loss: [n] float64, -ln p of each token, given the tokens before it in its window.
        byte_counts: [n] int64, the bytes of text that each token adds.
        document: [n] int64, the document that each token belongs to.
        kl: [n] float64, KL(reference || model) of the two distributions at each token, in nats;
            None if there was no reference.
        agrees: [n] bool, whether both models have the same most likely token; None if there was no
            reference.
    """

    loss: Tensor
    byte_counts: Tensor
    document: Tensor
    kl: Tensor | None = None
    agrees: Tensor | None = None

    @property
    def token_loss(self) -> tuple[float, float | None]:
        """The mean loss in nats, and its standard error."""
        return self.mean(self.loss)

    @property
    def perplexity(self) -> tuple[float, float | None]:
        """The exponential of the mean loss, and its standard error by the delta method."""
        mean, error = self.token_loss
        return math.exp(mean), None if error is None else math.exp(mean) * error

    @property
    def bits_per_byte(self) -> tuple[float, float | None]:
        """The loss in bits per UTF-8 byte (comparable between tokenizers), and its error."""
        mean, error = _ratio(self.loss, self.byte_counts.double(), self.document)
        return mean / math.log(2), None if error is None else error / math.log(2)

    def by_document(self) -> DocumentScores:
        """Return the sums over each document that has a scored token."""
        ones = torch.ones_like(self.byte_counts)
        return DocumentScores(*map(self.sums, (self.loss, ones, self.byte_counts)))

    def sums(self, values: Tensor) -> list[Any]:
        """Return the sum of the tokens' values [n] over each document that has a scored token."""
        documents, index = torch.unique(self.document, return_inverse=True)
        sums = torch.zeros(len(documents), dtype=values.dtype).index_add_(0, index, values)
        found: list[Any] = sums.tolist()
        return found

    def mean(self, values: Tensor) -> tuple[float, float | None]:
        """Return the mean of the tokens' values [n], and its standard error over documents."""
        return _ratio(values.double(), torch.ones_like(self.loss), self.document)


def perplexity_of(
    model: "PreTrainedModel", texts: Mapping[str, Stream], *, tokens: int, seq_len: int
) -> dict[str, Scores]:
    """Score a model in memory in several languages.

    Args:
        model: see ``score``.
        texts: language → text, as ``eval_text`` returns.
        tokens: the number of tokens to score in each language.
        seq_len: the context, in tokens.

    Raises:
        ValueError: see ``score``; the message names the language.
    """
    found, batches = {}, Batches()
    for code, text in texts.items():
        with named(f"language '{code}'"):
            found[code] = batches.run(
                model,
                seq_len,
                partial(score, model, text, tokens=tokens, seq_len=seq_len),
            )
    return found


@torch.inference_mode()
def score(
    model: "PreTrainedModel",
    stream: Stream,
    batch: int = 1,
    *,
    tokens: int,
    seq_len: int,
    reference: Logits | None = None,
) -> Scores:
    """Score ``tokens`` tokens of a text, beginning with its second token.

    Windows of ``seq_len`` tokens follow each other without overlap. Each token is predicted from
    the tokens before it in its window, and the first token after a window from the whole window. If
    the text has ``begin``, every window begins with it, and holds so many fewer tokens of the text.

    Args:
        model: a causal language model. It is called with ids [batch, seq_len], on its own device;
            the last window is padded behind its tokens, where it changes nothing.
        stream: the text.
        batch: the number of windows that run at once. Other numbers give other bits: in float32
            losses differ by less than 0.0001.
        tokens: the number of tokens to score.
        seq_len: the context, in tokens; more than ``begin`` has.
        reference: the logits of another model; None measures no divergence.

    Raises:
        ValueError: the text is too short, ``seq_len`` is too small or above the context length of
            the model, the model gives NaN or Inf, or the reference has another vocabulary.
    """
    check_context("the model", model.config.to_dict(), seq_len)
    if len(stream.ids) < tokens + 1:
        raise ValueError(
            f"{tokens:,} tokens are to be scored, but the text has {len(stream.ids):,}, of which "
            f"the first cannot be scored; ask for at most {len(stream.ids) - 1:,} tokens "
            "(--tokens) or give more text."
        )
    check_ids(model, stream.ids[: tokens + 1], "the text")
    found = []
    spans = list(_spans(stream, tokens, seq_len))
    where = input_device(model)
    for first in range(0, len(spans), batch):
        rows = slice(first, first + batch)
        texts = [
            torch.cat([begin, stream.ids[start : start + count]])
            for start, count, begin in spans[rows]
        ]
        windows = torch.cat([_window(ids, seq_len) for ids in texts])
        logits = model(input_ids=windows.to(where), use_cache=False).logits
        others = None if reference is None else reference(rows)
        for row, ((start, count, begin), ids) in enumerate(zip(spans[rows], texts, strict=True)):
            targets = stream.ids[start + 1 : start + count + 1].to(logits.device)
            scored = slice(len(begin), len(ids))
            other = None if others is None else others[row, scored]
            found.append(_measure(logits[row, scored], targets, other))
        del logits, others, other  # before the next ones are made
    loss, *divergence = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    if not all(torch.isfinite(values).all() for values in (loss, *divergence)):
        raise ValueError("the model gives NaN or Inf; it is damaged, or its dtype overflows.")
    counted = slice(1, tokens + 1)
    return Scores(loss, stream.byte_counts[counted], stream.document[counted], *divergence)


def rows_of(
    scores: Mapping[str, Scores],
    model: str,
    method: str = "float",
    calibration: str = "none",
    windows: str = "",
) -> list[Row]:
    """Return scores (language → scores, as ``perplexity_of`` returns) as rows of results."""
    computed = versions()
    return [
        Row(
            model=model,
            method=method,
            calibration=calibration,
            language=code,
            task="perplexity",
            metric=metric,
            value=value,
            stderr=stderr,
            n=len(found.loss),
            versions=computed,
            windows=windows,
        )
        for code, found in scores.items()
        for metric in ("perplexity", "bits_per_byte", "token_loss")
        for value, stderr in [getattr(found, metric)]
    ]


def items_of(
    scores: Mapping[str, Scores], model: str, method: str = "float", calibration: str = "none"
) -> list[ItemScores]:
    """Return the documents behind ``rows_of``: their loss, and their divergence if measured."""
    found = []
    for code, each in scores.items():
        loss, tokens, _ = each.by_document()
        of = (model, method, calibration, code)
        found.append(ItemScores(*of, "perplexity", "perplexity", list(loss), tokens))
        if each.kl is not None:
            found.append(ItemScores(*of, "fidelity", "kl", each.sums(each.kl), tokens))
    return found


def definition(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int | None,
    seq_len: int,
    separator: str | None,
    window_bos: bool = True,
) -> str:
    """Return in words how perplexity was measured, to print below a table.

    The arguments are those of ``mlcalib.evaluate``.
    """
    count = f"first {tokens:,}" if tokens is not None else f"first {DEFAULT_TOKENS:,} (or all)"
    windows = describe_windows(tokenizer, window_bos)
    return (
        f"Token perplexity of the {count} tokens per language after the first; context "
        f"{seq_len}, stride {seq_len} (no overlap)"
        f"{f', every context begins with {windows}' if windows else ''}; between documents: "
        f"{describe_separator(tokenizer, separator)}. Standard errors are over documents. Token "
        "perplexity is not comparable between tokenizers or languages; bits per byte is closer to "
        "it."
    )


def _spans(stream: Stream, tokens: int, seq_len: int) -> Iterator[tuple[int, int, Tensor]]:
    """Give where each window starts in the text, its tokens of text, and the ids before these."""
    begin = torch.tensor(stream.begin, dtype=torch.int64)
    if seq_len <= len(begin):
        raise ValueError(f"seq_len is {seq_len}; a window needs {len(begin) + 1} tokens or more.")
    start = 0
    while start < tokens:
        begun = torch.equal(stream.ids[start : start + len(begin)], begin)
        before = begin[:0] if begun else begin
        count = min(seq_len - len(before), tokens - start)
        yield start, count, before
        start += count


def _window(ids: Tensor, seq_len: int) -> Tensor:
    """Return ids as [1, seq_len]: always one shape. What follows them has no effect on them."""
    window = torch.zeros(1, seq_len, dtype=torch.int64)
    window[0, : len(ids)] = ids
    return window


def _measure(logits: Tensor, targets: Tensor, reference: Tensor | None) -> tuple[Tensor, ...]:
    """Return the loss of each row of logits and, given a reference, divergence and agreement."""
    if reference is not None and reference.shape != logits.shape:
        raise ValueError(
            f"the model predicts {logits.shape[-1]:,} tokens and the reference "
            f"{reference.shape[-1]:,}; distributions are comparable over one vocabulary only."
        )
    parts: list[tuple[Tensor, ...]] = []
    step = _ROWS if logits.device.type == "cpu" else ROWS
    for at in range(0, len(logits), step):
        rows = slice(at, at + step)
        log_q = logits[rows].float().log_softmax(-1)
        loss = -log_q.gather(1, targets[rows, None])[:, 0].double()
        if reference is None:
            parts.append((loss,))
            continue
        agrees = logits[rows].argmax(-1) == reference[rows].argmax(-1)
        log_p = reference[rows].float().log_softmax(-1)
        parts.append((loss, _divergence(log_p, log_q).double(), agrees))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of each row, in nats; both arguments are overwritten.

    With d = ln q - ln p it is sum p (e^d - 1 - d), since p and q both sum to 1. No term of that sum
    is negative, so small divergences do not drown in the rounding of sum p (-d): of one of 5e-5
    over 49,000 tokens the latter loses 4 % in float32, this 0.002 %.
    """
    d = log_q.sub_(log_p)
    return torch.expm1(d).sub_(d).mul_(log_p.exp_()).sum(-1)


def _ratio(values: Tensor, size: Tensor, document: Tensor) -> tuple[float, float | None]:
    """Σ values / Σ size, with the error of a ratio of document sums.

    Tokens of one document are not independent, so documents are what is drawn; a single document
    has no error.
    """
    ratio = float(values.sum() / size.sum())
    documents, index = torch.unique(document, return_inverse=True)
    count = len(documents)
    if count < 2:
        return ratio, None
    residuals = torch.zeros(count, dtype=torch.float64)
    residuals.index_add_(0, index, values - ratio * size)
    variance = float((residuals**2).sum()) * count / (count - 1)
    return ratio, math.sqrt(variance) / float(size.sum())
