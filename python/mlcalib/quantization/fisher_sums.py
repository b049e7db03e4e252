"""Sums of what the loss feels of a block's linears, over the sequences of texts and over ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlcalib.common.ranks import Ranks
from mlcalib.models import Adapter
from mlcalib.statistics import StatisticSet
from mlcalib.statistics.pairwise import Node, PairwiseSum
from mlcalib.statistics.summed import sum_over_ranks

SALIENCY, OUTPUT = "saliency_gram", "output_gram"


class Part(NamedTuple):
    """One of the statistics of a block: its kind, and whose input or output it is of."""

    kind: str
    name: str


class Beginning(NamedTuple):
    """The first so many sequences of a language's text."""

    language: str
    sequences: int


class FisherSums:
    """Adds up what sequences show of a block, in an order that the text decides.

    So any number of ranks gives the same bits; see ``PairwiseSum``.
    """

    def __init__(
        self,
        adapter: Adapter,
        block: nn.Module,
        beginnings: Mapping[str, set[int]],
        of_leaf: int,
        ranks: Ranks,
    ) -> None:
        """Begin a block.

        Args:
            adapter: the model's family.
            block: the block.
            beginnings: language → numbers of sequences, from the first on, whose sums are wanted.
            of_leaf: sequences of a leaf, see ``PairwiseSum``.
            ranks: the processes of the run; each shows its share of every text.
        """
        self._adapter, self._block = adapter, block
        self._linears = adapter.linears_of(block)
        self._like: dict[Part, StatisticSet] = {}
        for name, members in self._linears.items():
            weights = [adapter.linear(block, member).weight for member in members]
            self._like[Part(SALIENCY, name)] = StatisticSet((SALIENCY,), weights[0].shape[1])
            for member, weight in zip(members, weights, strict=True):
                self._like[Part(OUTPUT, member)] = StatisticSet((OUTPUT,), weight.shape[0])
        self._beginnings, self._of_leaf, self._ranks = beginnings, of_leaf, ranks
        self._sums: dict[Part, PairwiseSum] = {}  # of the leaves that are full
        self._leaf: int | None = None
        self._running: dict[Part, StatisticSet] = {}  # of this leaf
        self._ended: dict[Beginning, dict[Part, PairwiseSum]] = {}

    def begin_text(self) -> None:
        """Go on to the text of another language."""
        self._sums = {part: PairwiseSum() for part in self._like}
        self._leaf, self._running = None, {}

    @contextmanager
    def sequence(self, index: int) -> Iterator[None]:
        """Inside, the block runs forward and backward on a sequence, which is added."""
        if index // self._of_leaf != self._leaf:
            self._end_leaf()
            self._leaf = index // self._of_leaf
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # linear → input, gradient of each call
        with ExitStack() as stack:
            for name in (name for members in self._linears.values() for name in members):
                linear = self._adapter.linear(self._block, name)
                hook = _watch(seen, name, linear.weight.shape[0])
                stack.callback(linear.register_forward_hook(hook).remove)
            yield
        for key, members in self._linears.items():
            calls = {name: _joined(seen[name]) for name in members if name in seen}
            if calls:
                self._add(key, calls)

    def end_sequence(self, language: str, index: int) -> None:
        """Pass the end of a sequence, of this rank or another."""
        count = index + 1
        if count not in self._beginnings[language]:
            return
        if count == max(self._beginnings[language]):
            self._end_leaf()
            ended = self._sums
        else:  # what goes on needs its own
            ended = {part: each.copy() for part, each in self._sums.items()}
            for part, each in self._running.items():
                ended[part].push(Node(0, self._leaf or 0, each.copy()))
        self._ended[Beginning(language, count)] = ended

    def together(
        self, device: torch.device
    ) -> Iterator[tuple[Beginning, dict[Part, StatisticSet]]]:
        """Give the sums of all ranks, one beginning after the other; collective.

        Only when all texts have run: a rank may have no share of some of them. What no gradient
        reached is left out.

        Args:
            device: where the block ran.
        """
        for beginning in list(self._ended):
            ended = self._ended.pop(beginning)
            if self._ranks.alone:
                ended = {part: each for part, each in ended.items() if each.nodes}
            sums = sum_over_ranks(ended, self._like, self._ranks, device)
            yield beginning, {part: each for part, each in sums.items() if each.tokens > 0}

    def _end_leaf(self) -> None:
        for part, each in self._running.items():
            self._sums[part].push(Node(0, self._leaf or 0, each))
        self._leaf, self._running = None, {}

    def _add(self, key: str, seen: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add what was seen of the linears of an input: x [tokens, in] and g [tokens, out]."""
        x = next(iter(seen.values()))[0]
        felt = torch.stack([g.square().sum(1) for _, g in seen.values()]).sum(0).sqrt()
        self._of(Part(SALIENCY, key)).update(x * felt.unsqueeze(1))
        size = x.square().sum(1, keepdim=True).sqrt()
        for name, (_, g) in seen.items():
            self._of(Part(OUTPUT, name)).update(g * size)

    def _of(self, part: Part) -> StatisticSet:
        if part not in self._running:
            self._running[part] = self._like[part].empty_like()
        return self._running[part]


def _watch(
    seen: dict[str, list[tuple[Tensor, Tensor]]], name: str, rows: int
) -> Callable[..., None]:
    """Return a hook that keeps what a linear reads and the gradient at what it returns."""

    def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2).float()

        def take(gradient: Tensor) -> None:
            seen.setdefault(name, []).append((x, _by_rows(gradient.flatten(0, -2).float(), rows)))

        if output.requires_grad:
            output.register_hook(take)  # type: ignore[no-untyped-call]

    return forward


def _by_rows(gradient: Tensor, rows: int) -> Tensor:
    """Return gradients at all rows of a linear, [tokens, rows].

    Of linears whose rows are groups that read different tokens in turn (DeepSeek V4), what is given
    is the gradient of one group, [tokens, rows of a group]: at the others it is 0.
    """
    tokens, size = gradient.shape
    if size == rows:
        return gradient
    groups = rows // size
    spread = gradient.new_zeros(tokens, groups, size)
    token = torch.arange(tokens, device=gradient.device)
    spread[token, token % groups] = gradient
    return spread.flatten(1)


def _joined(calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, gradient = zip(*calls, strict=True)
    return torch.cat(x), torch.cat(gradient)
