"""What a pass takes in a device's memory, and what it does without where that is too little."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.ranks import Ranks
from mlcalib.models.device import CPU, free_memory
from mlcalib.notebook import html
from mlcalib.quantization.input_sizes import ExpertSums
from mlcalib.quantization.memory_needs import (
    NOTHING_BACKWARD,
    BackwardText,
    Needs,
    OtherText,
    needs_of,
)
from mlcalib.quantization.source import Source

_KEPT_FREE = 0.9  # of what is free: allocators lose some to gaps

REMEDIES = (
    "fewer GB as --memory, so that more is done without; a smaller --seq-len; fewer languages; "
    "--hidden-states disk; --device cpu"
)
"""The options that reduce what a pass takes."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a pass uses the memory of its device.

    Attributes:
        device: the one with the least free memory, where blocks run on several.
        needs: what it would take.
        budget: bytes that it may take there.
        on_host: whether hidden states lie in the host's memory, and not on a device that has its
            own.
        ahead: whether the next block is read and copied while one is worked on.
        fisher_by_text: whether statistics of the loss are kept of each text by itself.
        groups: languages whose statistics are held at the same time. With several groups the text
            runs through each block once more for what is solved, because losses need the
            statistics again.
        steps: what was fallen back to, in whole sentences.
        ranks: processes that do the run together; all else is of each of them.
        apart: whether experts are summed one by one, each by the rank that solves it.
        diagonal: whether of experts only the mixture has Grams, and each language diagonals.
    """

    device: torch.device
    needs: Needs
    budget: int
    on_host: bool
    ahead: bool
    fisher_by_text: bool
    groups: list[list[str]]
    steps: list[str] = field(default_factory=list)
    ranks: int = 1
    apart: bool = False
    diagonal: bool = False

    @property
    def traffic(self) -> int:
        """Bytes that each rank sends, and receives, in its largest block.

        Nodes go to who puts them together, and sums come back, all but a rank's own, also those of
        the loss; what experts read and codes once.
        """
        sums = 2 * self.needs.everywhere + self.needs.sent
        again = 2 if len(self.groups) > 1 and self.needs.solve else 1
        sent = sums * again + 2 * self.needs.fisher_texts + self.needs.codes
        return sent * (self.ranks - 1) // self.ranks

    @property
    def total(self) -> int:
        """Bytes that the pass takes as it is planned."""
        grams = [sum(self.needs.statistics[code] for code in group) for group in self.groups]
        fixed = _total(self.needs, self.ahead, self.on_host) + self._texts
        return fixed + self._further + max(grams)

    @property
    def _texts(self) -> int:
        return self.needs.fisher_texts if self.fisher_by_text else 0

    @property
    def _further(self) -> int:
        return self.needs.turns if len(self.groups) > 1 else 0

    def table(self) -> str:
        """Return the plan as plain text."""
        lines = [f"{self._headline()}; in GB:"]
        lines += [f"  {size / 1e9:8.3f}  {name}" for name, size in self._parts().items()]
        of_one = f"(of one text: {self._inputs()})"
        for code, size in self.needs.statistics.items():
            lines.append(f"  {size / 1e9:8.3f}  statistics of {code} {of_one}")
        if self.ranks > 1:
            lines.append(f"  {self.traffic / 1e9:8.3f}  sent by each rank in a block, and received")
        lines += [f"  {step}" for step in self.steps]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return "\n".join([f"MemoryPlan: {self._headline()}", *self.steps[-1:]])

    def _repr_html_(self) -> str:
        sizes = self._parts() | {
            f"statistics of {code}": size for code, size in self.needs.statistics.items()
        }
        most = max(sizes.values(), default=0) or 1
        rows = [[name, f"{size / 1e9:.3f}", html.bar(size / most)] for name, size in sizes.items()]
        told = [f"Statistics of one text, in GB: {self._inputs()}"] if self.needs.inputs else []
        return html.page(
            html.heading(self._headline()),
            html.table(["what", "GB", ""], rows),
            html.listing([*told, *self.steps]),
        )

    def _headline(self) -> str:
        each = f", for each of {self.ranks} ranks" if self.ranks > 1 else ""
        return (
            f"memory on {self.device}{each}: about {_gb(self.total)} of {_gb(self.budget)} that "
            "may be taken"
        )

    def _inputs(self) -> str:
        return ", ".join(f"{name} {size / 1e9:.3f}" for name, size in self.needs.inputs.items())

    def _parts(self) -> dict[str, int]:
        """Return what all but the statistics of languages takes, in bytes."""
        needs = self.needs
        host = " (in the host's memory)" if self.on_host else ""
        parts = {
            "weights to be loaded": needs.model,
            "weights of a block": needs.block,
            "the next block, read ahead": needs.block if self.ahead else 0,
            "activations of a sequence (estimate)": needs.forward,
            "solving: new weights, codes, mixture, factor": needs.solve,
            f"hidden states of all text{host}": needs.hidden,
            "sums of parts of the text that runs": needs.sums,
            "what experts read of a language": needs.rows,
            "other text that is measured": needs.other,
            "statistics of the loss": needs.fisher + self._texts,
            "other variants, until losses are measured": self._further,
            "statistics of weights that blocks share": needs.shared,
        }
        return {name: size for name, size in parts.items() if size}


def plan_memory(  # noqa: PLR0913 - what decides it
    source: Source,
    devices: Iterable[torch.device],
    text: CalibrationSet | None,
    prefixes: Mapping[str, int],
    kinds: Sequence[str],
    *,
    solving: int,
    divisible: bool,
    by_expert: bool = False,
    looks_at_all: bool = False,
    fisher: BackwardText = NOTHING_BACKWARD,
    other: OtherText | None = None,
    on_disk: bool = False,
    budget: int | None = None,
    ranks: Ranks | None = None,
) -> MemoryPlan:
    """Find out what a pass takes, and what it must do without; nothing runs.

    Where it is too much, these steps are taken until it fits: hidden states go to the host's
    memory; the next block is not read ahead; no divergence is predicted; languages take turns; of
    experts the mixture alone has Grams, and each language diagonals. Each is said in ``steps``.

    Args:
        source: the model; it needs no weights yet.
        devices: where blocks run.
        text: the calibration text.
        prefixes: language → number of its texts that statistics are kept of.
        kinds: statistics of each input.
        solving: number of jobs that mix statistics and solve.
        divisible: whether languages can take turns; see ``Job``.
        by_expert: whether experts can be summed one by one, as they are over ranks.
        looks_at_all: whether all experts' mixtures are looked at together; see ``Job``.
        fisher: text that runs backward.
        other: text that is measured beside.
        on_disk: whether hidden states lie on disk.
        budget: bytes that may be taken; None for nine tenths of what is free.
        ranks: processes that do the run together, on the CPU of a machine in the same memory. This
            is collective, and they all plan for the one that has least.
    """
    ranks = Ranks() if ranks is None else ranks
    places = dict.fromkeys(devices)
    free = {place: free_memory(place)[0] for place in places}
    device = min(free, key=lambda place: free[place], default=CPU)
    shared = ranks.local_size if device.type == "cpu" else 1
    found = int(_KEPT_FREE * free.get(device, 0)) // shared if budget is None else budget
    allowed = min(ranks.gathered(found))

    def planned(how: ExpertSums) -> MemoryPlan:
        needs = needs_of(
            source,
            device,
            text,
            prefixes,
            [*kinds, "moments"] if how.diagonal and "moments" not in kinds else kinds,
            solving,
            fisher,
            other,
            how=how,
            on_disk=on_disk,
            ranks=ranks.size,
        )
        return _plan(device, needs, allowed, how, fisher, solving, ranks.size, divisible=divisible)

    plan = planned(ExpertSums(by_expert and ranks.size > 1, False, looks_at_all))
    if plan.total > allowed and by_expert:
        other_plan = planned(ExpertSums(True, True, looks_at_all))
        plan = min(plan, other_plan, key=lambda each: each.total)
    if plan.total > allowed:
        plan.steps.append(
            f"Even so the pass needs about {_gb(plan.total)}, and may take {_gb(allowed)}: memory "
            "may run out. Fewer languages, a smaller --seq-len and --hidden-states disk take less."
        )
    return plan


def _plan(
    device: torch.device,
    needs: Needs,
    allowed: int,
    how: ExpertSums,
    fisher: BackwardText,
    solving: int,
    ranks: int,
    *,
    divisible: bool,
) -> MemoryPlan:
    """Return the first plan that fits, or the last; see ``plan_memory``."""
    elsewhere = device.type != "cpu"
    steps: list[str] = []
    on_host, ahead = False, elsewhere
    grams = sum(needs.statistics.values()) + needs.fisher_texts
    if elsewhere and _total(needs, ahead, on_host) + grams > allowed:
        on_host = True
        steps.append(
            f"Hidden states ({_gb(needs.hidden)}) are kept in the host's memory: they are "
            "copied to the device and back in every block."
        )
    if ahead and _total(needs, ahead, on_host) + grams > allowed:
        ahead = False
        steps.append("The next block is not read ahead: the device waits for each.")
    texts = needs.fisher_texts > 0
    if texts and not fisher.by_text and _total(needs, ahead, on_host) + grams > allowed:
        texts = False
        steps.append(
            f"Statistics of the loss ({_gb(needs.fisher_texts)}) are not kept by language: no "
            "divergence is predicted."
        )
    kept = needs.fisher_texts if texts else 0
    grams = sum(needs.statistics.values())
    left = allowed - _total(needs, ahead, on_host) - needs.turns - kept
    groups = [list(needs.statistics)]
    if grams > left + needs.turns and divisible and len(needs.statistics) > 1:
        groups = _groups(needs.statistics, left)
        most = max(map(len, groups))
        again = ": the text runs through each block once more" if solving else ""
        steps.append(
            f"Statistics of at most {most} of {len(needs.statistics)} languages are held at a "
            f"time, in {len(groups)} turns{again}."
        )
    if how.diagonal:
        steps.append(
            "Of experts only the mixture of the languages has Grams: losses of languages are those "
            "of the diagonals, which leave out what channels do together. Codes are the same."
        )
    return MemoryPlan(
        device,
        needs,
        allowed,
        on_host,
        ahead,
        texts,
        groups,
        steps,
        ranks,
        apart=how.apart,
        diagonal=how.diagonal,
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _groups(sizes: Mapping[str, int], left: int) -> list[list[str]]:
    """Split languages, in order, into groups whose statistics fit; each has at least one."""
    groups: list[list[str]] = [[]]
    held = 0
    for code, size in sizes.items():
        if groups[-1] and held + size > left:
            groups.append([])
            held = 0
        groups[-1].append(code)
        held += size
    return groups


def _total(needs: Needs, ahead: bool, on_host: bool) -> int:
    """Return the bytes of all but the statistics of the languages."""
    fixed = needs.model + needs.block + needs.forward + needs.solve + needs.other + needs.fisher
    fixed += needs.sums + needs.rows + needs.shared
    return fixed + (needs.block if ahead else 0) + (0 if on_host else needs.hidden)
