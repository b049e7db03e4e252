"""The statistics of a block, of all languages at once or in turns where memory is short."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.job import Job, Text, Wants
from mlcalib.quantization.propagation import BlockStatistics, Flow, Prefix
from mlcalib.quantization.solve import References, references
from mlcalib.statistics import StatisticSet, grows_with_square


@dataclass
class Gathered:
    """What the text showed of a block.

    Attributes:
        statistics: of its inputs; where languages took turns, only those that are small.
        measured: Grams of the calibration text; none where languages took turns.
        mixed: for each job its mixture, where languages took turns; else None.
        in_turns: whether they did: ``Gatherer.again`` gives their Grams.
        advanced: whether the hidden states have moved on.
    """

    statistics: BlockStatistics = field(default_factory=dict)
    measured: References[Text] = field(default_factory=dict)
    mixed: list[dict[str, StatisticSet] | None] = field(default_factory=list)
    in_turns: bool = False
    advanced: bool = False


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
    """

    flow: Flow
    jobs: Sequence[Job]
    kinds: Sequence[str]
    groups: Sequence[Sequence[str]]
    advance: bool
    stopwatch: Stopwatch

    def gather(self, name: str, block: nn.Module, waiting: Sequence[Job]) -> Gathered:
        """Return what the text shows of a block; ``waiting`` are the jobs that want to know."""
        if len(self.groups) > 1:
            return self._in_turns(name, block, waiting)
        statistics = self._collect(name, block, self.kinds, advance=self.advance)
        measured = of_kind("calibration", references(statistics))
        return Gathered(statistics, measured, [None] * len(waiting), advanced=self.advance)

    def _in_turns(self, name: str, block: nn.Module, waiting: Sequence[Job]) -> Gathered:
        """Mix the statistics of a group of languages before those of the next are gathered."""
        large = [kind for kind in self.kinds if grows_with_square(kind)]
        statistics: BlockStatistics = {}
        mixed: list[dict[str, StatisticSet]] = [{} for _ in waiting]
        if len(large) == len(self.kinds) and not any(job.mixture for job in waiting):
            return Gathered(mixed=list(mixed), in_turns=True)  # nothing would be kept
        for group in self.groups:
            found = self._collect(name, block, self.kinds, languages=group)
            with self.stopwatch.timed("mix"):
                for job, sums in zip(waiting, mixed, strict=True):
                    _add_to_mixture(sums, found, job.mixture or {})
            for key, by_prefix in found.items():
                for each in by_prefix.values():
                    each.drop(large)
                statistics.setdefault(key, {}).update(by_prefix)
        return Gathered(statistics, {}, list(mixed), in_turns=True)

    def again(self, name: str, block: nn.Module) -> Iterator[References[Text]]:
        """Give the Grams of one group of languages after the other; the text runs once more.

        With ``advance`` its hidden states move on.
        """
        for group in self.groups:
            found = self._collect(name, block, ("gram",), languages=group, advance=self.advance)
            yield of_kind("calibration", references(found))

    def _collect(
        self,
        name: str,
        block: nn.Module,
        kinds: Iterable[str],
        *,
        languages: Sequence[str] | None = None,
        advance: bool = False,
    ) -> BlockStatistics:
        skipped = set.intersection(*(job.skipped for job in self.jobs)) if self.jobs else set()
        return self.flow.collect(
            name, block, kinds, skipped=skipped, advance=advance, languages=languages
        )


def _add_to_mixture(
    sums: dict[str, StatisticSet], found: BlockStatistics, mixture: Mapping[Prefix, float]
) -> None:
    """Add what was found of some languages to a mixture: input → its statistics."""
    for key, by_prefix in found.items():
        for prefix, weight in mixture.items():
            if (each := by_prefix.get(prefix)) is not None:
                sums.setdefault(key, each.empty_like()).merge(each, weight)


def kinds_of(jobs: Sequence[Wants]) -> tuple[str, ...]:
    """Return the statistics that jobs want of the calibration text, each once."""
    return tuple(dict.fromkeys(kind for job in jobs for kind in job.kinds))


def of_kind(kind: str, given: References[str]) -> References[Text]:
    """Return what losses are measured with, with the kind of its text beside the language."""
    return {
        name: {(kind, language): reference for language, reference in by_language.items()}
        for name, by_language in given.items()
    }
