"""Quality against size: what each variant costs at its bits per weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlcalib.common.optional import optional
from mlcalib.report.evaluation_report.compared import FIDELITY
from mlcalib.report.page.canvas import INK, Drawing, Records, new
from mlcalib.report.page.colours import CATEGORIES
from mlcalib.report.page.document import Block, Cell, Details, Paragraph, Plot, Row, Section, Table
from mlcalib.report.page.words import full_name, signed
from mlcalib.report.study_report.results import ModelReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEANING = (
    "Bits per weight: codes, scales and zero points of the quantized linears in the format of the "
    "checkpoint, divided by their weights; numbers in the model's dtype count 16 bits. Embeddings, "
    "head and norms are in none of them. The frontier: no other variant is smaller and at least as "
    "good."
)
KL, RISE = "KL from the float model (nats)", "rise of the token loss (nats)"
_MARKERS = "osD^vPX"
_LABEL = (50.0, 8.0)
"""Width and height that a label takes, in points; what would lie on another one is left out."""


@dataclass(frozen=True)
class Size:
    """A variant: its size, and what it costs.

    Attributes:
        name: of the variant.
        label: what figures call it: its quantizer.
        calibration: its setting; ``none`` without text.
        bits: per weight.
        cost: language → KL from the float model, or the rise of its token loss, in nats.
    """

    name: str
    label: str
    calibration: str
    bits: float
    cost: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over languages."""
        return sum(self.cost.values()) / len(self.cost)

    @property
    def worst(self) -> str:
        """The language with the greatest cost."""
        return max(self.cost, key=lambda code: self.cost[code])


def sizes(report: ModelReport) -> tuple[str, list[Size]]:
    """Return what cost means, and the variants of known size measured in all languages.

    The cost is KL where all of them have it, and else the rise of the token loss.
    """
    known = [
        name
        for name in report.study.plan.variants
        if name in report.model.records
        and report.model.records[name].bits_per_weight is not None
        and report.measured.complete(name)
    ]
    divergences = {name: _divergence(report, name) for name in known}
    languages = set(report.measured.languages)
    if all(each.keys() >= languages for each in divergences.values()):
        return KL, [_size(report, name, cost) for name, cost in divergences.items()]
    return RISE, [_size(report, name, _rises(report, name)) for name in known]


def _size(report: ModelReport, name: str, cost: dict[str, float]) -> Size:
    variant, bits = report.study.plan.variants[name], report.model.records[name].bits_per_weight
    return Size(name, variant.quantizer, variant.setting or "none", bits or 0.0, cost)


def _divergence(report: ModelReport, name: str) -> dict[str, float]:
    rows = report.model.evaluations[name].rows
    return {row.language: row.value for row in rows if (row.task, row.metric) == (FIDELITY, "kl")}


def _rises(report: ModelReport, name: str) -> dict[str, float]:
    found = {code: report.measured.rise(name, code) for code in report.measured.languages}
    return {code: rise.value for code, rise in found.items() if rise is not None}


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of (bits, cost) no other one beats in both, by bits."""
    order = sorted(range(len(points)), key=lambda at: points[at])
    found: list[int] = []
    for at in order:
        if not found or points[at][1] < points[found[-1]][1]:
            found.append(at)
    return found


def compares_sizes(found: Sequence[Size]) -> bool:
    """Return whether there are two sizes to compare."""
    return len({each.bits for each in found}) > 1


def section(report: ModelReport, prefix: str) -> Section | None:
    """Return figure and table; None where all variants are of one size, or none is measured."""
    what, found = sizes(report)
    if not compares_sizes(found):
        return None
    best = set(frontier([(each.bits, each.mean) for each in found]))
    order = sorted(enumerate(found), key=lambda place: (place[1].bits, place[1].mean))
    header: Row = [
        "variant", "bits per weight", f"mean {what}", Cell("worst language", plain=True), "its",
    ]  # fmt: skip
    rows: list[Row] = [
        [
            Cell(each.name, head=True),
            f"{each.bits:.2f}",
            Cell(signed(each.mean, 4), best=at in best),
            Cell(full_name(each.worst), plain=True),
            signed(each.cost[each.worst], 4),
        ]
        for at, each in order
    ]
    blocks: list[Block] = [
        Paragraph(MEANING, "note"),
        Plot(f"{prefix}size", f"{what}; lines: the frontiers of each calibration."),
        Details("The numbers", [Table("Boxed: on the frontier of the mean", header, rows)]),
    ]
    return Section(f"{prefix}size", "Quality against size", blocks)


def records(report: ModelReport) -> Records:
    """Return a row for each variant of known size."""
    plan, measured = report.study.plan, report.measured
    rows = []
    for name, record in report.model.records.items():
        evaluation = report.model.evaluations.get(name)
        if record.bits_per_weight is None:
            continue
        rises = _rises(report, name) if evaluation and measured.complete(name) else {}
        row = {
            "variant": name,
            "quantizer": plan.variants[name].quantizer,
            "setting": plan.variants[name].setting,
            "format": plan.variants[name].format,
            "bits_per_weight": record.bits_per_weight,
            "bytes": record.bytes,
        }
        for key, values in (
            ("kl", _divergence(report, name) if evaluation else {}),
            ("rise", rises),
        ):
            worst = max(values, key=lambda code: values[code], default=None)
            row |= {
                f"mean_{key}": sum(values.values()) / len(values) if values else None,
                f"worst_{key}": None if worst is None else values[worst],
                f"worst_{key}_language": worst,
            }
        rows.append(row)
    return rows


def drawing(report: ModelReport, prefix: str) -> Drawing | None:
    """Return the figure; None where the section is."""
    what, found = sizes(report)
    if not compares_sizes(found):
        return None
    return Drawing(f"{prefix}size", size_figure(found, what), records(report))


def size_figure(found: Sequence[Size], what: str) -> Callable[[], "Figure"]:
    """Draw cost against bits per weight: the mean of languages, and the worst language.

    Args:
        found: the variants.
        what: the cost, in words.
    """

    def draw() -> "Figure":
        figure = new(8.6, 4.0)
        mean, worst = figure.subplots(1, 2, sharey=True)
        _panel(mean, found, [each.mean for each in found], "mean of languages")
        _panel(worst, found, [each.cost[each.worst] for each in found], "worst language")
        mean.set_ylabel(what)
        worst.legend(fontsize=7, frameon=False, title="calibration", title_fontsize=7)
        return figure

    return draw


def _panel(axes: "Axes", found: Sequence[Size], costs: Sequence[float], title: str) -> None:
    ticker = optional("matplotlib.ticker", "report", "A report")
    best = set(frontier([(each.bits, cost) for each, cost in zip(found, costs, strict=True)]))
    for at, calibration in enumerate(dict.fromkeys(each.calibration for each in found)):
        mine = [index for index, each in enumerate(found) if each.calibration == calibration]
        points = [(found[index].bits, costs[index]) for index in mine]
        line = [points[index] for index in frontier(points)]
        colour, marker = CATEGORIES[at % len(CATEGORIES)], _MARKERS[at % len(_MARKERS)]
        axes.plot(*zip(*points, strict=True), marker, color=colour, ms=4, label=calibration)
        axes.plot(*zip(*line, strict=True), color=colour, lw=1)
    if min(costs) > 0:
        axes.set_yscale("log")
    axes.set_xscale("log")
    taken: list[tuple[float, float]] = []  # where labels begin, in points
    for index in sorted(best, key=lambda index: costs[index]):
        place = (found[index].bits, costs[index])
        x, y = (float(each) * 72 / axes.figure.dpi for each in axes.transData.transform(place))
        if all(abs(x - left) > _LABEL[0] or abs(y - low) > _LABEL[1] for left, low in taken):
            taken.append((x, y))
            axes.annotate(
                found[index].label, place, fontsize=6, color=INK,
                xytext=(3, -7), textcoords="offset points",
            )  # fmt: skip
    axes.xaxis.set_major_locator(ticker.FixedLocator([2, 3, 4, 5, 6, 8, 16]))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("bits per weight")
    axes.set_title(title, fontsize=9)
