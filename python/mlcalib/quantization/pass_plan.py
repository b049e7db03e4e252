"""What a pass takes, from what its jobs want."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.ranks import Ranks
from mlcalib.quantization.gathering import kinds_of
from mlcalib.quantization.job import Wants
from mlcalib.quantization.memory import MemoryPlan, plan_memory
from mlcalib.quantization.memory_needs import BackwardText, OtherText
from mlcalib.quantization.prefixes import Prefix, half_of, mixture_of
from mlcalib.quantization.source import Source


def plan_pass(
    source: Source,
    jobs: Sequence[Wants],
    text: CalibrationSet | None,
    places: Mapping[str, torch.device],
    prefixes: Iterable[Prefix] = (),
    *,
    other: OtherText | None = None,
    on_disk: bool = False,
    memory: float | None = None,
    ranks: Ranks | None = None,
) -> MemoryPlan:
    """Return what a pass takes of its device's memory, and how it uses it; nothing runs.

    Args:
        source: see ``run_pass``, likewise ``text``, ``prefixes`` and ``memory``.
        jobs: or what they want.
        text: see there.
        places: block → where it runs.
        prefixes: see there.
        other: text that is measured beside.
        on_disk: whether hidden states lie on disk.
        memory: see there.
        ranks: see there; this is collective too, and they all plan the same.

    Raises:
        ValueError: ``memory`` is not above 0.
    """
    if memory is not None and not memory > 0:
        raise ValueError(f"memory is {memory}, expected GB above 0, or nothing for what is free.")
    counts: dict[str, int] = {}
    if text is not None:
        wanted = set(prefixes) or set(mixture_of(text))
        if any(job.halves for job in jobs):
            wanted |= set(map(half_of, wanted))
        for prefix in wanted:
            counts[prefix.language] = counts.get(prefix.language, 0) + 1
        counts = {language: counts[language] for language in text.ids if language in counts}
    felt = [job for job in jobs if job.fisher_tokens]
    return plan_memory(
        source,
        places.values(),
        text,
        counts,
        tuple(dict.fromkeys([*kinds_of(jobs), *(other.kinds if other else ())])),
        solving=sum(job.mixture is not None for job in jobs),
        fisher=BackwardText(
            [job.fisher_tokens for job in felt],
            len({prefix for job in felt for prefix in job.mixture or {}}),
            by_text=any(job.worst_off for job in jobs),
        ),
        divisible=all(job.divisible for job in jobs),
        by_expert=_by_expert(source, jobs),
        looks_at_all=any(job.looks_at_all for job in jobs),
        other=other,
        on_disk=on_disk,
        budget=None if memory is None else int(memory * 1e9),
        ranks=ranks,
    )


def _by_expert(source: Source, jobs: Sequence[Wants]) -> bool:
    """Return whether experts can be summed one by one, for jobs that mix and solve alone."""
    adapter = source.adapter
    blocks = (block for _, block in adapter.named_blocks(source.model))
    return (
        bool(jobs)
        and not adapter.places
        and all(job.divisible and job.mixture and not job.fisher_tokens for job in jobs)
        and any(adapter.has_experts(block) for block in blocks)
    )
