"""The statistics of a block, of all languages at once or in turns where memory is short."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from torch import nn

from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.cache_ranges import CacheRanges
from mlcalib.quantization.expert_rows import Taken, expert_owners
from mlcalib.quantization.job import Job, Text, Wants
from mlcalib.quantization.prefixes import BlockStatistics, Prefix
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.solve import References, references
from mlcalib.quantization.stream_writer import Behind
from mlcalib.statistics import StatisticSet, compares, grows_with_square


@dataclass
class Gathered:
    """What the text showed of a block.

    Attributes:
        statistics: of its inputs; where languages took turns, only those that are small.
        measured: Grams of the calibration text; none where languages took turns.
        mixed: for each job what is mixed already: all where languages took turns, and inputs of
            experts where only their mixture is kept; else None.
        in_turns: whether they did: ``Gatherer.again`` gives their Grams.
        owners: input of an expert → the rank that alone has its Grams; empty where all have them.
        advanced: whether the hidden states have moved on.
        inputs: those that were gathered; None for all.
        later: inputs that are gathered behind what is solved, one after the other.
        cache: keys and values, where a job asks for them.
    """

    statistics: BlockStatistics = field(default_factory=dict)
    measured: References[Text] = field(default_factory=dict)
    mixed: list[dict[str, StatisticSet] | None] = field(default_factory=list)
    in_turns: bool = False
    advanced: bool = False
    owners: Mapping[str, int] = field(default_factory=dict)
    inputs: Sequence[str] | None = None
    later: Sequence["LaterInput"] = ()
    cache: CacheRanges | None = None


@dataclass(frozen=True)
class LaterInput:
    """An input of a block that is read behind what is solved before it (true sequential).

    Attributes:
        name: the input.
        gatherer: gathers it.
        block_name: name of the block in the model.
        block: with its own weights.
        job: the only one that waits for it.
        last: whether no other input comes after it.
    """

    name: str
    gatherer: "Gatherer"
    block_name: str
    block: nn.Module
    job: Job
    last: bool

    def gather(self, behind: Behind, *, trial: bool = False) -> Gathered:
        """Return what the text shows of the input; collective.

        Args:
            behind: the block with what is solved of it.
            trial: whether it will be gathered again, so that the float model's text stays here.
        """
        return self.gatherer.gather_part(
            self.block_name,
            self.block,
            [self.job],
            self._part(behind, moves=self.last and not trial),
        )

    def again(self, behind: Behind) -> Iterator[References[Text]]:
        """Give the Grams of one group of languages after the other; see ``Gatherer.again``."""
        part = self._part(behind, moves=False)
        return self.gatherer.again(self.block_name, self.block, part)

    def _part(self, behind: Behind, *, moves: bool) -> "Part":
        return Part([self.name], behind, moves)


@dataclass(frozen=True)
class Part:
    """What is gathered of a block at a time.

    Attributes:
        inputs: those that are; None for all.
        behind: the block with what is solved of it; None where nothing is.
        moves: whether the float model's text that is compared with moves on.
    """

    inputs: Sequence[str] | None = None
    behind: Behind | None = None
    moves: bool = True


@dataclass
class Gatherer:
    """Gathers the statistics of one block after the other.

    Attributes:
        flow: the calibration text.
        jobs: of the pass.
        kinds: statistics of each input.
        groups: languages whose statistics are held at the same time.
        advance: whether the hidden states may move on through the block as it is.
        stopwatch: gets the time that mixing takes.
        ranks: the processes of the run.
        apart: whether each expert is summed by the rank that solves it; see ``ExpertRows``.
        diagonal: whether of experts only the mixture's Grams are kept, and of each language the
            diagonals.
    """

    flow: Flow
    jobs: Sequence[Job]
    kinds: Sequence[str]
    groups: Sequence[Sequence[str]]
    advance: bool
    stopwatch: Stopwatch
    ranks: Ranks = field(default_factory=Ranks)
    apart: bool = False
    diagonal: bool = False

    def gather(self, name: str, block: nn.Module, waiting: Sequence[Job]) -> Gathered:
        """Return what the text shows of a block; ``waiting`` are the jobs that want to know.

        A job that compares with the float model's activations gets the first input, and later ones
        when it has solved what comes before them. Where it searches scales, or looks at keys and
        values, it gets them all before.
        """
        order = self._order(block, waiting)
        if len(order) < 2:
            return self.gather_part(name, block, waiting, Part())
        (job,) = waiting
        first = order if job.looks_at_all or job.kv_cache else order[:1]
        found = self.gather_part(name, block, waiting, Part(first, moves=False))
        found.inputs = first
        found.later = [
            LaterInput(each, self, name, block, job, each == order[-1]) for each in order[1:]
        ]
        return found

    def _order(self, block: nn.Module, waiting: Sequence[Job]) -> list[str]:
        """Return the inputs that are solved one after the other; none where all are at once."""
        adapter = self.flow.adapter
        comparing = [job for job in waiting if compares(job.kinds)]
        return list(adapter.linears_of(block)) if comparing and not adapter.places else []

    def gather_part(
        self, name: str, block: nn.Module, waiting: Sequence[Job], part: Part
    ) -> Gathered:
        """Return what the text shows of some inputs of a block."""
        owners = self._owners(block)
        watched = part.behind is None and any(job.kv_cache for job in waiting)
        cache = CacheRanges(name, block) if watched else None
        mixing = _Mixing(waiting, self._kinds, self.stopwatch)
        if len(self.groups) > 1:
            return self._in_turns(name, block, mixing, owners, cache, part)
        taken = mixing.take if self.diagonal and owners else None
        statistics = self._collect(
            name, block, self._kinds, owners, taken, advance=self.advance, cache=cache, part=part
        )
        measured = of_kind("calibration", references(statistics))
        mixed = [None if taken is None else sums for sums in mixing.mixed]
        return Gathered(
            statistics, measured, mixed, advanced=self.advance, owners=owners, cache=cache
        )

    def _in_turns(
        self,
        name: str,
        block: nn.Module,
        mixing: "_Mixing",
        owners: Mapping[str, int],
        cache: CacheRanges | None,
        part: Part,
    ) -> Gathered:
        """Mix the statistics of a group of languages before those of the next are gathered."""
        statistics: BlockStatistics = {}
        if mixing.keeps_nothing:
            return Gathered(mixed=list(mixing.mixed), in_turns=True)
        taken = mixing.take if self.diagonal else None
        for group in self.groups:
            found = self._collect(
                name, block, self._kinds, owners, taken, languages=group, cache=cache, part=part
            )
            for key, by_prefix in found.items():
                if taken is None or key not in owners:
                    mixing.take(key, by_prefix)
                statistics.setdefault(key, {}).update(by_prefix)
        measured: References[Text] = {}
        if taken is not None:
            known = {key: statistics[key] for key in owners if key in statistics}
            measured = of_kind("calibration", references(known))
        return Gathered(
            statistics, measured, list(mixing.mixed), in_turns=True, owners=owners, cache=cache
        )

    def again(self, name: str, block: nn.Module, part: Part) -> Iterator[References[Text]]:
        """Give the Grams of one group of languages after the other; the text runs once more.

        Not those of experts of which diagonals are kept. With ``advance`` its hidden states move
        on.
        """
        owners = self._owners(block)
        for group in self.groups:
            found = self._collect(
                name, block, ("gram",), owners, languages=group, advance=self.advance, part=part
            )
            yield of_kind("calibration", references(found))

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Statistics of each input, with those that diagonals are taken from."""
        return tuple(dict.fromkeys([*self.kinds, *(("moments",) if self.diagonal else ())]))

    def _owners(self, block: nn.Module) -> dict[str, int]:
        return expert_owners(self.flow.adapter, block, self.ranks.size) if self.apart else {}

    def _collect(
        self,
        name: str,
        block: nn.Module,
        kinds: Iterable[str],
        owners: Mapping[str, int],
        taken: Taken | None = None,
        *,
        languages: Sequence[str] | None = None,
        advance: bool = False,
        cache: CacheRanges | None = None,
        part: Part,
    ) -> BlockStatistics:
        linears = self.flow.adapter.linears_of(block)
        skipped = set.intersection(*(job.skipped for job in self.jobs)) if self.jobs else set()
        if self.diagonal and taken is None:
            skipped |= {f"{name}.{member}" for key in owners for member in linears[key]}
        if part.inputs is not None:
            others = linears.keys() - set(part.inputs)
            skipped |= {f"{name}.{member}" for key in others for member in linears[key]}
        return self.flow.collect(
            name,
            block,
            kinds,
            skipped=skipped,
            advance=advance,
            languages=languages,
            experts=owners,
            taken=taken,
            beside=nullcontext if cache is None else cache.watching,
            behind=part.behind,
            moves=part.moves,
        )


class _Mixing:
    """Adds up the mixtures of jobs while statistics come, which are then forgotten.

    Attributes:
        mixed: for each job input → its mixture so far.
        keeps_nothing: whether no job mixes, and all kinds are forgotten.
    """

    def __init__(self, jobs: Sequence[Job], kinds: Sequence[str], stopwatch: Stopwatch) -> None:
        self._mixtures = [job.mixture or {} for job in jobs]
        self._large = [kind for kind in kinds if grows_with_square(kind)]
        self._stopwatch = stopwatch
        self.mixed: list[dict[str, StatisticSet]] = [{} for _ in jobs]
        self.keeps_nothing = len(self._large) == len(kinds) and not any(self._mixtures)

    def take(self, key: str, by_prefix: Mapping[Prefix, StatisticSet]) -> None:
        """Add statistics of an input, and keep of them what does not grow with the square."""
        with self._stopwatch.timed("mix"):
            for mixture, sums in zip(self._mixtures, self.mixed, strict=True):
                for prefix, weight in mixture.items():
                    if (each := by_prefix.get(prefix)) is not None:
                        sums.setdefault(key, each.empty_like()).merge(each, weight)
        for each in by_prefix.values():
            each.drop(self._large)


def kinds_of(jobs: Sequence[Wants]) -> tuple[str, ...]:
    """Return the statistics that jobs want of the calibration text, each once."""
    return tuple(dict.fromkeys(kind for job in jobs for kind in job.kinds))


def of_kind(kind: str, given: References[str]) -> References[Text]:
    """Return what losses are measured with, with the kind of its text beside the language."""
    return {
        name: {(kind, language): reference for language, reference in by_language.items()}
        for name, by_language in given.items()
    }
