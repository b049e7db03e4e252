"""How much the loss feels what each linear reads and returns: statistics of its gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.errors import named
from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.device import CPU
from mlcalib.quantization.backward import LossGradients
from mlcalib.quantization.dealing import dealt
from mlcalib.quantization.fisher_sums import OUTPUT, SALIENCY, Beginning, FisherSums, Part
from mlcalib.quantization.prefixes import Mixture, Prefix, longest_texts
from mlcalib.quantization.source import Source
from mlcalib.quantizers.base import Labels
from mlcalib.statistics import StatisticSet
from mlcalib.statistics.pairwise import leaf_sequences


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
    def of(cls, sums: Mapping[Part, StatisticSet]) -> "BlockFisher":
        """Return what sums make up; they become its own."""
        found = cls()
        for part, each in sums.items():
            (found.inputs if part.kind == SALIENCY else found.outputs)[part.name] = each
        return found

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
        ranks: Ranks | None = None,
    ) -> None:
        """Take what is wanted; nothing runs.

        Args:
            source: the float model.
            text: the calibration text.
            asked: for whom → a mixture, and how many tokens of it.
            devices: block → where it runs.
            labels: whose loss is taken; see ``Quantizer.fisher_labels``.
            by_text: whether that of each text is kept, and not of mixtures alone.
            ranks: the processes of the run, each of which runs its share of every language's
                sequences; ``gather`` is then collective.
        """
        self._by_text = by_text
        self._adapter, self._size, self._devices = source.adapter, text.seq_len, devices
        self._ranks = Ranks() if ranks is None else ranks
        self._asked = {
            key: (mixture, sequences_of(mixture, tokens, text.seq_len))
            for key, (mixture, tokens) in asked.items()
        }
        self._beginnings: dict[str, set[int]] = {}
        for _, sequences in self._asked.values():
            for prefix, count in sequences.items():
                self._beginnings.setdefault(prefix.language, set()).add(count)
        self._counts = {language: max(each) for language, each in self._beginnings.items()}
        self._own = dealt(self._counts, text.seq_len, self._ranks.rank, self._ranks.size)
        self._gradients = LossGradients(source, text, self._own, devices, labels)

    def run(self, stopwatch: Stopwatch, description: str | None) -> None:
        """Run the text forward and backward; see ``LossGradients.run``."""
        self._gradients.run(stopwatch, description)

    def gather(self, block_name: str, block: nn.Module) -> Felt:
        """Return what the loss feels of a block; over ranks collective.

        The block runs forward and backward once more. Its gradients are forgotten.

        Raises:
            ValueError: a gradient is NaN or Inf; names the block and the language.
        """
        of_leaf = leaf_sequences(self._size)
        sums = FisherSums(self._adapter, block, self._beginnings, of_leaf, self._ranks)
        for language, count in self._counts.items():
            sums.begin_text()
            for index in range(count):
                if index in self._own[language]:
                    where = f"gradients in {block_name}, text in '{language}'"
                    with named(where), sums.sequence(index):
                        self._gradients.backward(block_name, block, (language, index))
                sums.end_sequence(language, index)
        self._gradients.forget(block_name)
        felt = Felt({key: BlockFisher() for key in self._asked})
        for beginning, found in sums.together(self._devices.get(block_name, CPU)):
            self._take(felt, BlockFisher.of(found), beginning)
        for fisher in felt.mixtures.values():
            fisher.check_finite(block_name)
        return felt

    def _take(self, felt: Felt, found: BlockFisher, beginning: Beginning) -> None:
        """Add the first sequences of a language where they stand for a text of it."""
        made: dict[Prefix, BlockFisher] = {}  # which several ask for
        for key, (mixture, sequences) in self._asked.items():
            for prefix, wanted in sequences.items():
                if beginning != (prefix.language, wanted):
                    continue
                share = prefix.tokens / (wanted * self._size)
                felt.mixtures[key].merge(found, mixture[prefix] * share)
                if self._by_text:
                    if prefix not in made:
                        made[prefix] = BlockFisher()
                        made[prefix].merge(found, share)
                    felt.texts.setdefault(key, {})[prefix] = made[prefix]
