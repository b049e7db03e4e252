"""A transformers model for lm-evaluation-harness, which computes shared beginnings only once."""

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional

from mlcalib.common import compat
from mlcalib.common.progress import progress_bar
from mlcalib.evaluation.batching import tokens_that_fit
from mlcalib.evaluation.tasks.generating import generate
from mlcalib.evaluation.tasks.prefixes import Group, Tokens, batches, group, padded_tokens
from mlcalib.models import find_adapter
from mlcalib.models.device import short_of_memory
from mlcalib.quantization.text_check import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_BATCH_TOKENS = 768  # on the CPU; more fills no core better, and costs memory
_BATCH_TOKENS_ELSEWHERE = 16384  # or what fits into memory
_TOGETHER = 16  # a row of a long prompt holds tens to hundreds of MB of cache

Scored = tuple[float, bool]
Request = tuple[tuple[str, str], list[int], list[int]]


class TaskModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-eval's ``hf`` for a model in memory, with the same log-likelihoods from fewer tokens.

    Requests that begin alike (the choices of an item, the items of a premise) share one forward of
    their common beginning. Only tokens that are scored go through the output head. Generated texts
    are those of ``hf``; they are removed from their batch when they have ended.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer; copied, since lm-eval gives it a padding token.
        batch_size: sequences generated together. Default: 16.
        max_length: context; longer inputs lose their beginning. Default: the model's.
        progress: show bars.
        options: as for ``hf``; ``softmax_dtype`` is float32 unless it is given or the model's dtype
            is wider.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        progress: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size or _TOGETHER,
            max_length=max_length,
            **options,
        )
        self._progress = progress
        self._batch_tokens = _BATCH_TOKENS
        if model.device.type != "cpu":
            self._batch_tokens = tokens_that_fit(model, model.device, _BATCH_TOKENS_ELSEWHERE)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
        """Return for each (context, continuation) its log-likelihood, and whether it is greedy."""
        found: list[Scored] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm or not self._progress
        )
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that the model writes after each prompt."""
        self.check_texts(request.args[0] for request in requests)
        found: list[str] = super().generate_until(
            requests, disable_tqdm=disable_tqdm or not self._progress
        )
        return found

    def check_texts(self, texts: Iterable[str]) -> None:
        """Refuse prompts with a token for which the model has no embedding.

        Raises:
            ValueError: names the token.
        """
        self._check_tokens(map(self.tok_encode, texts))

    def _check_tokens(self, prompts: Iterable[Sequence[int]]) -> None:
        highest = max((max(ids) for ids in prompts if ids), default=0)
        check_ids(self.model, torch.tensor(highest), "A text of the tasks", self.tokenizer)

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        *,
        attention_mask: Tensor,
        **options: Any,
    ) -> Tensor:
        plain = self.mixed_precision_dtype is None and self._can_share(max_length)
        if not (plain and self._is_greedy(options)):
            found: Tensor = super()._model_generate(
                context, max_length, stop, attention_mask=attention_mask, **options
            )
            return found
        return self._generate_what_fits(context, attention_mask, stop, max_length)

    def _generate_what_fits(
        self, ids: Tensor, mask: Tensor, stop: list[str], max_length: int
    ) -> Tensor:
        """Return what ``generate`` does; where memory runs out, of one half after the other."""
        run = partial(generate, self.model, self.tokenizer, stop=stop, max_length=max_length)
        if len(ids) == 1:
            held = f"the model and one text of up to {max_length:,} tokens"
            with short_of_memory(self.device, held, "a smaller max_length, or --device cpu"):
                return run(ids, mask)
        try:
            return run(ids, mask)
        except torch.OutOfMemoryError:
            half = len(ids) // 2
        _log.warning("%d texts at once do not fit into memory; now %d", len(ids), half)
        parts = [(ids[:half], mask[:half]), (ids[half:], mask[half:])]
        return torch.cat([self._generate_what_fits(*part, stop, max_length) for part in parts])

    def _is_greedy(self, options: dict[str, Any]) -> bool:
        beams = getattr(self.model.generation_config, "num_beams", None) or 1
        greedy = options.keys() <= {"do_sample", "temperature"} and not options.get("do_sample")
        return greedy and beams == 1

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Scored]:
        self._check_tokens(context + target for _, context, target in requests)
        inputs = [self._input(context, target) for _, context, target in requests]
        for sequence, (_, _, target) in zip(inputs, requests, strict=True):
            if not 0 < len(target) <= len(sequence):
                raise ValueError(
                    f"A continuation has {len(target):,} tokens, but from 1 to {len(sequence):,} "
                    f"can be scored: the context is {self.max_length:,} tokens long."
                )
        if not self._can_share(max(map(len, inputs), default=0)):
            found: list[Scored] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return found
        targets: dict[Tokens, dict[Tokens, Scored | None]] = {}
        for sequence, (_, _, target) in zip(inputs, requests, strict=True):
            targets.setdefault(sequence, {})[tuple(target)] = None
        groups = group(list(targets))
        with progress_bar(total=len(groups), desc="scoring", disable=disable_tqdm) as bar:
            while groups:
                batch = next(batches(groups, self._batch_tokens))
                if self._score_if_it_fits(batch, targets):
                    del groups[: len(batch)]
                    bar.update(len(batch))
        results = []
        for sequence, (texts, _, target) in zip(inputs, requests, strict=True):
            scored = targets[sequence][tuple(target)]
            assert scored is not None
            self.cache_hook.add_partial("loglikelihood", texts, scored)
            results.append(scored)
        return results

    def _score_if_it_fits(
        self, batch: Sequence[Group], targets: dict[Tokens, dict[Tokens, Scored | None]]
    ) -> bool:
        """Fill in the scores of a batch's sequences; where memory runs out, halve the batches."""
        if len(batch) == 1:
            tokens = max(map(len, batch[0].sequences))
            held = f"the model and one item of {tokens:,} tokens"
            with short_of_memory(self.device, held, "a smaller max_length, or --device cpu"):
                self._score(batch, targets)
            return True
        try:
            self._score(batch, targets)
        except torch.OutOfMemoryError:
            self._batch_tokens = padded_tokens(batch) // 2
        else:
            return True
        _log.warning(
            "%d items at once do not fit into memory; now about %s tokens are scored at once",
            len(batch),
            f"{self._batch_tokens:,}",
        )
        return False

    def _input(self, context: list[int], target: list[int]) -> Tokens:
        """Return what the model reads to predict the target: all but the last token, cut left."""
        return tuple((context + target)[-(self.max_length + 1) : -1])

    def _can_share(self, longest: int) -> bool:
        """Whether a cache of a shared beginning gives what the whole sequence gives.

        It does for the attention of the models that mlcalib knows, as long as no window is full.
        """
        try:
            find_adapter(type(self.model).__name__)
        except NotImplementedError:
            return False
        window = getattr(self.model.config, "sliding_window", None)
        return window is None or longest < window

    @torch.inference_mode()
    def _score(
        self, batch: Sequence[Group], targets: dict[Tokens, dict[Tokens, Scored | None]]
    ) -> None:
        """Fill in the scores of a batch's sequences."""
        starts = [_first_scored(each, targets) for each in batch]
        prefix = _padded([each.prefix for each in batch], self.device)
        first = min(*starts, prefix.shape[1] - 1)
        shared = [each for each in batch if each.rests]
        out = self.model(
            input_ids=prefix,  # padded on the right, where it changes nothing
            use_cache=bool(shared),
            logits_to_keep=prefix.shape[1] - first,
        )
        none: Iterator[_Read] = iter(())
        rests = self._rests(batch, starts, out[compat.cache_name()]) if shared else none
        read = self._read(out.logits)
        for row, (each, start) in enumerate(zip(batch, starts, strict=True)):
            head = read.part(row, start - first, len(each.prefix) - first)
            for sequence in each.sequences:
                parts = [head, next(rests)] if each.rests else [head]
                for target in targets[sequence]:
                    targets[sequence][target] = _score(parts, target)

    def _read(self, logits: Tensor) -> "_Read":
        # The very operation of hf: over a large vocabulary its float32 sum is off by 4e-6, which
        # adds up over the tokens of a text to most of what a more exact one would differ from it.
        dtype = self.softmax_dtype or torch.promote_types(logits.dtype, torch.float32)
        log_p = functional.log_softmax(logits, -1, dtype=dtype)
        return _Read(log_p, log_p.argmax(-1))

    def _rests(
        self, batch: Sequence[Group], starts: Sequence[int], cache: Any
    ) -> Iterator["_Read"]:
        """Yield what is read of each rest, from its first token that is scored."""
        rows = [row for row, each in enumerate(batch) for _ in each.rests]
        lengths = torch.tensor([len(batch[row].prefix) for row in rows], device=self.device)
        rests = [rest for each in batch for rest in each.rests]
        ids = _padded(rests, self.device)
        cache.batch_select_indices(torch.tensor(rows, device=self.device))
        width = cache.get_seq_length()
        mask = None
        if (lengths < width).any():  # hide the padding between a prefix and its rest
            mask = torch.arange(width, device=self.device) < lengths[:, None]
            mask = torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], 1).long()
        after = [max(0, starts[row] - len(batch[row].prefix)) for row in rows]
        first = min(after)
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=lengths[:, None] + torch.arange(ids.shape[1], device=self.device),
            use_cache=True,
            logits_to_keep=ids.shape[1] - first,
            **{compat.cache_name(): cache},
        )
        read = self._read(out.logits)
        for row, (rest, skipped) in enumerate(zip(rests, after, strict=True)):
            yield read.part(row, skipped - first, len(rest) - first)


@dataclass(frozen=True)
class _Read:
    """What is scored of logits, and takes a pass over the vocabulary: done once for all targets.

    Attributes:
        log_p: [..., tokens, vocabulary], log-probabilities.
        best: [..., tokens] int64, the most probable token.
    """

    log_p: Tensor
    best: Tensor

    def part(self, row: int, start: int, end: int) -> "_Read":
        return _Read(self.log_p[row, start:end], self.best[row, start:end])


def _first_scored(each: Group, targets: dict[Tokens, dict[Tokens, Scored | None]]) -> int:
    """Return the first position whose logits a target of the group needs."""
    return min(
        len(sequence) - len(target) for sequence in each.sequences for target in targets[sequence]
    )


def _padded(sequences: Sequence[Tokens], device: torch.device) -> Tensor:
    """Return [sequences, longest] int64, zeros on the right."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids.to(device)


def _score(parts: Sequence[_Read], target: Tokens) -> Scored:
    """Return the log-likelihood of a target, and whether it is what greedy decoding gives.

    Args:
        parts: of the positions before the target's tokens and, first, perhaps others.
        target: the tokens.
    """
    total, greedy, end = 0.0, True, len(target)
    for part in reversed(parts):
        count = min(end, len(part.best))
        if not count:
            continue
        ids = torch.tensor(target[end - count : end], device=part.best.device)
        total += float(part.log_p[-count:].gather(1, ids[:, None]).double().sum())
        greedy &= bool((part.best[-count:] == ids).all())
        end -= count
    if not math.isfinite(total):
        raise ValueError("the model gives NaN or Inf; it is damaged, or its dtype overflows.")
    return total, greedy
