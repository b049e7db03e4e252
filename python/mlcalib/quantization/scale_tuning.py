"""Scales of quantized linears trained end to end: predictions come near the float model's."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.progress import progress_bar
from mlcalib.models import Adapter
from mlcalib.quantization.scaled_linear import check_grids, with_scaled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Place = tuple[str, int]
"""A sequence of a calibration set: its language, and its index there."""


@dataclass(frozen=True)
class Tuning:
    """How scales are trained; see ``mlcalib.tune``."""

    learning_rate: float
    epochs: int
    batch: int
    held_out: float
    seed: int

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is not possible; says what is.
        """
        for name, given, fits, expected in (
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < 1, "between 0 and 1"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch", self.batch, self.batch >= 1, "1 or more sequences"),
            ("held_out", self.held_out, 0 < self.held_out < 1, "a share between 0 and 1"),
        ):
            if not fits:
                raise ValueError(f"{name} is {given}, expected {expected}.")


@dataclass(frozen=True)
class Tuned:
    """What training came to.

    Attributes:
        scales: linear → its scales, [out, groups] float32, exact in the dtype of its grid.
        divergences: of the scales as they were, and after each epoch: language → KL(float ‖
            quantized) of held-out text, in nats per token.
        kept: which of these states ``scales`` are; 0 is that before the first epoch.
        tokens: tokens trained on, in each epoch.
        held_out: language → tokens of held-out text.
    """

    scales: dict[str, Tensor]
    divergences: list[dict[str, float]]
    kept: int
    tokens: int
    held_out: dict[str, int]


class ScaleTraining:
    """Trains the scales of a model's linears, and of nothing else, by Adam.

    The loss is the KL divergence of the model's predictions from the float model's, summed over
    tokens (as knowledge distillation has it, Hinton et al., arXiv 1503.02531), where each token
    counts as the calibration set weighs its language. Sequences run one by one. Blocks are run
    again in the backward pass, so that only one keeps what its gradients need.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        adapter: Adapter,
        linears: Mapping[str, QuantizedLinear],
        reference: "PreTrainedModel",
        text: CalibrationSet,
        options: Tuning,
    ) -> None:
        """Take what is to be trained; nothing runs yet.

        Args:
            model: with dequantized weights in its quantized linears; it is not changed.
            adapter: its family.
            linears: name in the model → codes and grid.
            reference: the float model; it is not changed.
            text: what is trained on, and held out.
            options: how.

        Raises:
            ValueError: see ``check_grids``; text of which nothing can be held out.
        """
        check_grids({name: each.grid.spec for name, each in linears.items()})
        self._text, self._options = text, options
        self._counted = {
            (language, index): counted
            for language in text.ids
            for index, (_, counted) in enumerate(text.sequences(language))
        }
        self._train, self._held = _split(text, options.held_out)
        self._model, self._float = _frozen(model), _frozen(reference)
        self._adapter = adapter
        self._scaled = with_scaled(self._model, adapter, linears)
        for _, block in adapter.named_blocks(self._model):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def run(self, description: str | None) -> Tuned:
        """Train.

        Args:
            description: what the progress bar says; None shows none.

        Raises:
            ValueError: predictions that are NaN or Inf, or of another vocabulary than the float
                model's.
        """
        options, kept = self._options, 0
        total = options.epochs * len(self._train) + (options.epochs + 1) * len(self._held)
        parameters = list(dict.fromkeys(each.change for each in self._scaled.values()))
        adam = torch.optim.Adam(parameters, lr=options.learning_rate)
        steps = options.epochs * -(-len(self._train) // options.batch)
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=steps)
        with progress_bar(
            total=total, desc=description, unit="sequence", disable=description is None
        ) as bar:
            scales = self._scales()
            divergences = [self._held_out(bar.update)]
            for epoch in range(options.epochs):
                order = random.Random(f"{options.seed} {epoch}").sample(
                    self._train, len(self._train)
                )
                for start in range(0, len(order), options.batch):
                    self._step(order[start : start + options.batch], adam, bar.update)
                    falling.step()
                divergences.append(self._held_out(bar.update))
                if self._mean(divergences[-1]) < self._mean(divergences[kept]):
                    scales, kept = self._scales(), epoch + 1
        tokens = sum(self._counted[place] for place in self._train)
        held = {language: self._held_tokens(language) for language in divergences[0]}
        return Tuned(scales, divergences, kept, tokens, held)

    def _step(
        self, batch: Sequence[Place], adam: torch.optim.Adam, done: Callable[[], object]
    ) -> None:
        """Go one step by the sequences of a batch."""
        whole = sum(self._weight(place) * self._counted[place] for place in batch)
        adam.zero_grad()
        for place in batch:
            with torch.enable_grad():
                loss = self._divergence(place) * (self._weight(place) / whole)
                loss.backward()  # type: ignore[no-untyped-call]
            done()
        adam.step()

    def _divergence(self, place: Place) -> Tensor:
        """Return KL(float ‖ quantized) of a sequence, summed over the tokens that count."""
        counted = self._counted[place]
        with torch.no_grad():
            wanted = log_softmax(self._logits(self._float, place)[:counted].float(), -1)
        logits = self._logits(self._model, place)[:counted].float()
        if logits.shape != wanted.shape:
            raise ValueError(
                f"the quantized model predicts {logits.shape[1]:,} tokens, and the float model "
                f"{wanted.shape[1]:,}; give the model that was quantized."
            )
        wanted = wanted.to(logits.device)
        loss = kl_div(log_softmax(logits, -1), wanted, reduction="sum", log_target=True)
        if not loss.isfinite():
            raise ValueError(
                f"predictions in '{place[0]}' (sequence {place[1]}) are NaN or Inf; use float32 "
                "weights (dtype), or a smaller learning_rate."
            )
        return loss

    @torch.no_grad()
    def _held_out(self, done: Callable[[], object]) -> dict[str, float]:
        """Return the divergence of held-out text by language, with scales as they are stored."""
        for each in self._scaled.values():
            each.rounded = True
        sums: dict[str, float] = {}
        for place in self._held:
            sums[place[0]] = sums.get(place[0], 0.0) + self._divergence(place).item()
            done()
        for each in self._scaled.values():
            each.rounded = False
        return {language: total / self._held_tokens(language) for language, total in sums.items()}

    def _logits(self, model: "PreTrainedModel", place: Place) -> Tensor:
        """Return a model's predictions after each token of a sequence, [seq_len, vocabulary]."""
        language, index = place
        runs = self._adapter.language_model(model)
        given = {"input_ids": self._text.ids[language][index : index + 1]}
        given |= self._text.inputs.get(language, {}).get(index, {})
        home = runs.get_input_embeddings().weight.device
        moved = {name: each.to(home) for name, each in given.items()}
        logits: Tensor = runs(**moved, use_cache=False).logits
        return logits[0]

    def _scales(self) -> dict[str, Tensor]:
        return {name: each.scale() for name, each in self._scaled.items()}

    def _mean(self, divergences: Mapping[str, float]) -> float:
        """Return the mean over held-out tokens, each as its language weighs."""
        weights = {
            language: self._weight((language, 0)) * self._held_tokens(language)
            for language in divergences
        }
        total = sum(divergences[language] * weight for language, weight in weights.items())
        return total / sum(weights.values())

    def _held_tokens(self, language: str) -> int:
        return sum(self._counted[place] for place in self._held if place[0] == language)

    def _weight(self, place: Place) -> float:
        return self._text.weights.get(place[0], 1.0)


def _split(text: CalibrationSet, share: float) -> tuple[list[Place], list[Place]]:
    """Return the sequences to train on, and those held out: the first ones of each language.

    A language with one sequence has none that is held out.

    Raises:
        ValueError: no language has two sequences.
    """
    train, held = [], []
    for language, ids in text.ids.items():
        first = max(1, round(share * len(ids))) if len(ids) > 1 else 0
        first = min(first, len(ids) - 1)
        held += [(language, index) for index in range(first)]
        train += [(language, index) for index in range(first, len(ids))]
    if not held:
        raise ValueError(
            "every language has one sequence of text, and some text has to be held out to see "
            "whether tuning helps; give more tokens, or a smaller seq_len."
        )
    return train, held


def _frozen(model: "PreTrainedModel") -> "PreTrainedModel":
    """Copy the modules but not the weights, of which none takes a gradient."""
    shared = {
        id(each): nn.Parameter(each.detach(), requires_grad=False) for each in model.parameters()
    }
    return copy.deepcopy(model, shared).eval()
