"""What the statistics of a block's inputs take, of experts and of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mlcalib.models.experts import experts_of_token
from mlcalib.quantization.source import Source
from mlcalib.statistics import grows_with_square, statistic_bytes


@dataclass(frozen=True)
class ExpertSums:
    """How statistics of experts are made.

    Attributes:
        apart: whether one by one, each by the rank that solves it; see ``ExpertRows``.
        diagonal: whether each language has diagonals alone, and the mixture has the Gram.
        looks_at_all: whether every rank needs the mixtures of all experts.
    """

    apart: bool = False
    diagonal: bool = False
    looks_at_all: bool = False


@dataclass(frozen=True)
class InputSizes:
    """Bytes of the statistics of a block's inputs: of all others, and of those of experts.

    Attributes:
        others: of inputs that are not experts'.
        experts: of those of all experts.
        largest: of the largest input of an expert.
        small: of those of all experts what does not grow with the square.
        share: the part of the experts that a rank has.
        chosen: the part of the experts that a token goes to.
        row: of what experts read of a token.
    """

    others: int
    experts: int
    largest: int
    small: int
    share: float
    chosen: float
    row: int

    def of_text(self, how: ExpertSums) -> int:
        """Return the bytes of a text's statistics on a rank."""
        return self.others + (self.small if how.diagonal else int(self.experts * self.share))

    def of_mixture(self, how: ExpertSums) -> int:
        """Return the bytes of a mixture, and of what all experts lend each other."""
        share = 1.0 if how.looks_at_all else self.share
        return self.others + int(self.experts * share) + self.largest

    def of_parts(self, how: ExpertSums, parts: int, of_one: int) -> int:
        """Return the bytes of sums of parts of texts.

        Args:
            how: the statistics are made.
            parts: how many a rank has of its share.
            of_one: how many it has of the text of one expert, if that is summed by itself.
        """
        if how.apart:
            return parts * self.others + of_one * self.largest
        return parts * (self.others + self.experts)


def input_sizes(
    source: Source,
    block: nn.Module,
    kinds: Sequence[str],
    device: torch.device,
    of_input: Mapping[str, int],
    ranks: int,
) -> InputSizes:
    """Return what the statistics of a block's inputs take, for each of so many ranks."""
    adapter = source.adapter
    small = [kind for kind in kinds if not grows_with_square(kind)]
    channels: dict[str, dict[str, int]] = {}  # expert → its inputs
    for key, members in adapter.linears_of(block).items():
        if (expert := adapter.expert_of(members[0])) is not None:
            width = adapter.linear(block, members[0]).in_features
            channels.setdefault(expert, {})[key] = width
    sizes = {key: of_input[key] for inputs in channels.values() for key in inputs}
    count = len(channels)
    first = next(iter(channels.values()), {})
    row = sum(first.values()) * source.dtype.itemsize
    of_token = experts_of_token(source.model.config, count)
    return InputSizes(
        others=sum(of_input.values()) - sum(sizes.values()),
        experts=sum(sizes.values()),
        largest=max(sizes.values(), default=0),
        small=sum(
            statistic_bytes(kind, width, device)
            for inputs in channels.values()
            for width in inputs.values()
            for kind in small
        ),
        share=-(-count // ranks) / count if count else 0.0,
        chosen=of_token / count if count else 0.0,
        row=row * of_token,
    )
