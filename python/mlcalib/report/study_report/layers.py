"""Where a rise comes from: losses of layers relative to their power, and activation ranges."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mlcalib.report.study_report.folder import Layers, ModelResults, Outside, Study

Blocks = dict[tuple[int, str], float]
"""(block, kind of linear) → number."""


def place(linear: str) -> tuple[int, str]:
    """Return block and kind: 3 and ``mlp.up_proj`` of ``model.layers.3.mlp.up_proj``.

    Experts of one block are one kind: ``mlp.experts.up_proj``.

    Raises:
        ValueError: the name has no number of a block.
    """
    found = re.match(r".*?\.(\d+)\.(.+)", linear)
    if found is None:
        raise ValueError(f"'{linear}' is not the name of a linear in a block of a model.")
    return int(found[1]), re.sub(r"\.\d+\.", ".", found[2])


def short(linear: str) -> str:
    """Return ``3 up_proj`` for ``model.layers.3.mlp.up_proj``; an expert keeps its number."""
    block, name = re.sub(r"^.*?\.(\d+)\.", r"\1 ", linear).split(" ", 1)
    return f"{block} {re.sub(r'^(self_attn|mlp)[.]', '', name)}"


def relative(model: ModelResults, variant: str, language: str) -> dict[str, float]:
    """Return linear → loss on the evaluation text over the power of its output, both per token.

    Linears that were not measured on the language, or that put nothing out, are absent.
    """
    record = model.records.get(variant)
    if record is None:
        return {}
    found = {}
    for linear, losses in record.heldout.items():
        power = model.layers.power.get(linear, {}).get(language, 0.0)
        if language in losses and power > 0:
            found[linear] = losses[language] / power
    return found


def predicted(model: ModelResults, variant: str, language: str) -> float | None:
    """Return the sum over linears of what predicts the damage; None where nothing was measured.

    The divergence by the loss's gradients where the study knows it, else ``relative``.
    """
    record = model.records.get(variant)
    felt = {} if record is None else record.divergence
    costs = [losses[language] for losses in felt.values() if language in losses]
    if felt:
        return sum(costs) if costs else None
    shares = relative(model, variant, language)
    return sum(shares.values()) if shares else None


def by_block(values: Mapping[str, float]) -> Blocks:
    """Add up linear → number by block and kind; experts of a block are averaged."""
    found: dict[tuple[int, str], list[float]] = {}
    for linear, value in values.items():
        found.setdefault(place(linear), []).append(value)
    return {at: sum(each) / len(each) for at, each in found.items()}


def kinds(blocks: Iterable[tuple[int, str]]) -> list[str]:
    """Return the kinds of linears, in the order of the model."""
    return list(dict.fromkeys(kind for _, kind in blocks))


@dataclass(frozen=True)
class Input:
    """What one or several linears of a block read, and how its ranges compare.

    Attributes:
        linears: those that read it.
        calibrated: extremes on the calibration text of the setting's languages; None if unknown.
        evaluated: extremes on the language's evaluation text, likewise.
        outside: activations of the latter outside the former, per channel; None if unknown.
    """

    linears: list[str]
    calibrated: tuple[float, float] | None
    evaluated: tuple[float, float] | None
    outside: Outside | None

    @property
    def name(self) -> str:
        """Block and linears: ``3 self_attn.q_proj, k_proj, v_proj``."""
        first, *others = self.linears
        return ", ".join([short(first), *(each.rpartition(".")[2] for each in others)])


@dataclass(frozen=True)
class Activations:
    """Inputs of a model's linears under one calibration setting.

    Attributes:
        layers: what was measured.
        setting: its name.
        mixed: languages of the setting.
        groups: linears that read the same input, in the order of the model.
    """

    layers: Layers
    setting: str
    mixed: list[str]
    groups: list[list[str]]

    def inputs(self, language: str) -> list[Input]:
        """Return each distinct input, as the language's evaluation text excites it."""
        shares = self.layers.outside.get(self.setting, {})
        return [
            Input(
                linears,
                self._calibrated(linears[0]),
                self.layers.heldout_ranges.get(linears[0], {}).get(language),
                shares.get(linears[0], {}).get(language),
            )
            for linears in self.groups
        ]

    def mean_outside(self, language: str) -> float | None:
        """Return the mean over inputs of the share outside; None if not measured."""
        shares = [each.outside.share for each in self.inputs(language) if each.outside]
        return sum(shares) / len(shares) if shares else None

    def _calibrated(self, linear: str) -> tuple[float, float] | None:
        ranges = self.layers.ranges.get(linear, {})
        found = [ranges[code] for code in self.mixed if code in ranges]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def activations(study: Study, model: ModelResults, setting: str) -> Activations:
    """Group linears by input: those beside each other whose ranges and shares are all the same."""
    layers = model.layers
    measured = (layers.outside.get(setting, {}), layers.heldout_ranges, layers.ranges)
    groups: list[list[str]] = []
    for linear in dict.fromkeys(name for each in measured for name in each):
        if groups and all(_alike(each, groups[-1][0], linear) for each in measured):
            groups[-1].append(linear)
        else:
            groups.append([linear])
    return Activations(layers, setting, list(study.plan.settings[setting].languages), groups)


def _alike(measured: Mapping[str, object], first: str, second: str) -> bool:
    same_parent = first.rpartition(".")[0] == second.rpartition(".")[0]
    return same_parent and measured.get(first) == measured.get(second)


def spearman(first: Iterable[float], second: Iterable[float]) -> float | None:
    """Return the rank correlation; ties get their mean rank. None below 3 pairs or without spread.

    Raises:
        ValueError: other numbers of values.
    """
    from scipy import stats

    pair = [np.asarray(list(each), dtype=np.float64) for each in (first, second)]
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"{len(pair[0])} and {len(pair[1])} values cannot be paired.")
    if len(pair[0]) < 3 or any(np.ptp(each) == 0 for each in pair):
        return None
    return float(stats.spearmanr(*pair).statistic)
