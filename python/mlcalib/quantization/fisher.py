"""How much the loss feels what each linear reads and returns: statistics of its gradients."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.errors import named
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantization.backward import LossGradients
from mlcalib.quantization.propagation import Mixture, Prefix, longest_texts
from mlcalib.quantization.source import Source
from mlcalib.quantizers.base import Labels
from mlcalib.statistics import StatisticSet

SALIENCY, OUTPUT = "saliency_gram", "output_gram"


@dataclass
class BlockFisher:
    """The Fisher information of a block's linears, in its Kronecker form; adds up over tokens.

    Attributes:
        inputs: input → its ``saliency_gram`` G₁ = Σ ‖g‖² x xᵀ, with g the gradients at the outputs
            of all linears that read it (GuidedQuant, arXiv 2505.07004).
        outputs: linear → its ``output_gram`` O = Σ ‖x‖² g gᵀ, with g the gradient at its output.
        languages: text of a language → that of this text by itself, where divergences are wanted.
    """

    inputs: dict[str, StatisticSet] = field(default_factory=dict)
    outputs: dict[str, StatisticSet] = field(default_factory=dict)
    languages: Mapping[Prefix, "BlockFisher"] = field(default_factory=dict)

    @classmethod
    def mixed(cls, texts: "Mapping[Prefix, BlockFisher]", mixture: Mixture) -> "BlockFisher":
        """Return that of a mixture of texts."""
        found = cls()
        for prefix, weight in mixture.items():
            found.merge(texts[prefix], weight)
        return found

    def divergences(self, name: str, member: str, change: Tensor) -> dict[str, float]:
        """Return language → what the change of a linear's weights costs; see ``divergence``."""
        return {
            prefix.language: each.divergence(name, member, change, prefix.tokens)
            for prefix, each in self.languages.items()
        }

    def divergence(self, name: str, member: str, change: Tensor, tokens: float) -> float:
        """Return what the change of a linear's weights costs, in nats per token of a text.

        That is ½ Σ (gᵀ D x)² per token, the divergence KL(float ‖ quantized) to second order, as
        far as D alone makes it; with the Fisher information in its Kronecker form,
        ½ tr(O D G₁ Dᵀ) / tr G₁. Over linears it adds up.

        Args:
            name: the input.
            member: the linear.
            change: D, float32 [out, in].
            tokens: of the text that this is the Fisher information of.

        Returns:
            0 where no gradient reaches the linear.
        """
        if member not in self.outputs or name not in self.inputs:
            return 0.0
        gram = self.inputs[name].view(SALIENCY)["gram"]
        output = self.outputs[member].view(OUTPUT)["gram"]
        felt = ((output @ change) * (change @ gram)).sum(dtype=torch.float64)
        size = gram.diagonal().sum(dtype=torch.float64)
        return float(felt / (2 * size * tokens)) if size > 0 else 0.0

    def merge(self, other: "BlockFisher", weight: float) -> None:
        """Add ``weight`` times another one's."""
        for mine, theirs in ((self.inputs, other.inputs), (self.outputs, other.outputs)):
            for name, each in theirs.items():
                mine.setdefault(name, each.empty_like()).merge(each, weight)

    def check_finite(self, block_name: str) -> None:
        """Wait for the device, and look for NaN and Inf in what was added there.

        Raises:
            ValueError: there were some; names the input or linear.
        """
        for name, each in (*self.inputs.items(), *self.outputs.items()):
            with named(f"gradients in {block_name}, {name}"):
                each.check_finite()


@dataclass
class Felt:
    """What the loss feels of a block.

    Attributes:
        mixtures: for whom → the Fisher information on their mixture.
        texts: for whom → text of their mixture → that of the text by itself; empty where memory is
            too short for it.
    """

    mixtures: dict[Any, BlockFisher] = field(default_factory=dict)
    texts: dict[Any, dict[Prefix, BlockFisher]] = field(default_factory=dict)

    @property
    def languages(self) -> dict[Prefix, BlockFisher]:
        """The longest text of each language, of all that anyone asked for."""
        texts = {prefix: each for found in self.texts.values() for prefix, each in found.items()}
        return {prefix: texts[prefix] for prefix in longest_texts(texts).values()}


def sequences_of(mixture: Mixture, tokens: int, seq_len: int) -> dict[Prefix, int]:
    """Return how many sequences of each text of a mixture make up so many tokens of it.

    Each has its share in the mixture's tokens, in whole sequences; at least one.
    """
    total = sum(prefix.tokens for prefix in mixture)
    wanted = {prefix: tokens * prefix.tokens / (total * seq_len) for prefix in mixture}
    return {
        prefix: max(1, min(round(count), prefix.tokens // seq_len))
        for prefix, count in wanted.items()
    }


class Fisher:
    """Gathers the Fisher information of one block after the other, for several mixtures."""

    def __init__(
        self,
        source: Source,
        text: CalibrationSet,
        asked: Mapping[Any, tuple[Mixture, int]],
        devices: Mapping[str, torch.device],
        *,
        labels: Labels = "model",
        by_text: bool = True,
    ) -> None:
        """Take what is wanted; nothing runs.

        Args:
            source: the float model.
            text: the calibration text.
            asked: for whom → a mixture, and how many tokens of it.
            devices: block → where it runs.
            labels: whose loss is taken; see ``Quantizer.fisher_labels``.
            by_text: whether that of each text is kept, and not of mixtures alone.
        """
        self._by_text = by_text
        self._adapter, self._size = source.adapter, text.seq_len
        self._asked = {
            key: (mixture, sequences_of(mixture, tokens, text.seq_len))
            for key, (mixture, tokens) in asked.items()
        }
        self._counts: dict[str, int] = {}
        for _, sequences in self._asked.values():
            for prefix, count in sequences.items():
                before = self._counts.get(prefix.language, 0)
                self._counts[prefix.language] = max(before, count)
        self._gradients = LossGradients(source, text, self._counts, devices, labels)

    def run(self, stopwatch: Stopwatch, description: str | None) -> None:
        """Run the text forward and backward; see ``LossGradients.run``."""
        self._gradients.run(stopwatch, description)

    def gather(self, block_name: str, block: nn.Module) -> Felt:
        """Return what the loss feels of a block.

        The block runs forward and backward once more. Its gradients are forgotten.

        Raises:
            ValueError: a gradient is NaN or Inf; names the block and the language.
        """
        felt = Felt({key: BlockFisher() for key in self._asked})
        for language, count in self._counts.items():
            running = BlockFisher()
            for index in range(count):
                where = f"gradients in {block_name}, text in '{language}'"
                with named(where), _watched(running, self._adapter, block):
                    self._gradients.backward(block_name, block, (language, index))
                self._take(felt, running, language, index + 1)
        self._gradients.forget(block_name)
        for fisher in felt.mixtures.values():
            fisher.check_finite(block_name)
        return felt

    def _take(self, felt: Felt, running: BlockFisher, language: str, length: int) -> None:
        """Add the first ``length`` sequences of a language where they stand for a text of it."""
        made: dict[Prefix, BlockFisher] = {}  # which several ask for
        for key, (mixture, sequences) in self._asked.items():
            for prefix, wanted in sequences.items():
                if prefix.language != language or wanted != length:
                    continue
                share = prefix.tokens / (length * self._size)
                felt.mixtures[key].merge(running, mixture[prefix] * share)
                if self._by_text:
                    if prefix not in made:
                        made[prefix] = BlockFisher()
                        made[prefix].merge(running, share)
                    felt.texts.setdefault(key, {})[prefix] = made[prefix]


@contextmanager
def _watched(found: BlockFisher, adapter: Adapter, block: nn.Module) -> Iterator[None]:
    """Inside, a block runs forward and backward on a sequence; that is added to ``found``."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # linear → input and gradient of each call

    def watch(name: str) -> Callable[..., None]:
        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2).float()

            def take(gradient: Tensor) -> None:
                seen.setdefault(name, []).append((x, gradient.flatten(0, -2).float()))

            if output.requires_grad:
                output.register_hook(take)  # type: ignore[no-untyped-call]

        return forward

    linears = adapter.linears_of(block)
    with ExitStack() as stack:
        for name in (name for members in linears.values() for name in members):
            handle = adapter.linear(block, name).register_forward_hook(watch(name))
            stack.callback(handle.remove)
        yield
    for key, members in linears.items():
        calls = {name: seen[name] for name in members if name in seen}
        _add_input(found, key, {name: _joined(each) for name, each in calls.items()})


def _joined(calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, gradient = zip(*calls, strict=True)
    return torch.cat(x), torch.cat(gradient)


def _add_input(found: BlockFisher, key: str, seen: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add what was seen of the linears of an input: x [tokens, in] and g [tokens, out] of each."""
    if not seen:
        return
    x = next(iter(seen.values()))[0]
    felt = torch.stack([g.square().sum(1) for _, g in seen.values()]).sum(0).sqrt()
    _set(found.inputs, key, SALIENCY, x.shape[1]).update(x * felt.unsqueeze(1))
    size = x.square().sum(1, keepdim=True).sqrt()
    for name, (_, g) in seen.items():
        _set(found.outputs, name, OUTPUT, g.shape[1]).update(g * size)


def _set(sets: dict[str, StatisticSet], name: str, kind: str, channels: int) -> StatisticSet:
    if name not in sets:
        sets[name] = StatisticSet((kind,), channels)
    return sets[name]
