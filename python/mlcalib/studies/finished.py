"""A study as an object: its numbers, tables, figures and report, as far as it has come."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from mlcalib.common.optional import optional
from mlcalib.notebook import html
from mlcalib.report import study_report
from mlcalib.report.page import inline
from mlcalib.report.page.canvas import Drawing, Records, style, svg
from mlcalib.report.page.words import signed
from mlcalib.report.study_report.answer import ranked
from mlcalib.report.study_report.results import ModelReport, results
from mlcalib.report.study_report.results import Results as Computed
from mlcalib.report.study_report.tables import tables
from mlcalib.results.rows import Results
from mlcalib.studies.plan import Plans

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class StudyFigure:
    """A figure of a study. A notebook shows it as SVG, in the colours of the page.

    Attributes:
        name: of its files in the report.
        figure: of matplotlib, to be changed or saved.
    """

    name: str
    figure: "Figure"

    def __repr__(self) -> str:
        return f"StudyFigure '{self.name}'"

    @property
    def svg(self) -> str:
        """The figure as SVG to be put into a page, whose colour of text it takes."""
        with style():
            return inline(svg(self.figure), self.name)

    def _repr_html_(self) -> str:
        return self.svg


class Study:
    """The folder of a study, finished or not. A notebook shows where it stands.

    Numbers are read when they are first asked for, and kept: after a study has gone on, make a new
    object of its folder.

    Attributes:
        folder: what ``mlcalib.study`` writes.
        plans: for each model what was left to do when the study was called; empty for a folder that
            was opened.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        plans: Plans | None = None,
        *,
        resamples: int | None = None,
        seed: int = 0,
    ) -> None:
        """Open a folder; nothing is read.

        Args:
            folder: what ``mlcalib.study`` or ``mlcalib study`` wrote, or will write.
            plans: what was left to do.
            resamples: of the bootstrap behind every interval; None for 10,000, or more where the
                study has more than 100 cells.
            seed: of the bootstrap.
        """
        self.folder = Path(folder)
        self.plans = Plans() if plans is None else plans
        self._resamples, self._seed = resamples, seed

    @property
    def results(self) -> Results:
        """The numbers of all models and checkpoints, as rows.

        Raises:
            FileNotFoundError: there is no study in the folder.
            ValueError: a file in it is damaged; names it.
        """
        found = self._computed.models
        return Results(
            row
            for report in found
            for each in report.model.evaluations.values()
            for row in each.rows
        )

    @property
    def tables(self) -> list[str]:
        """The names that ``table`` takes: what the report writes as CSV."""
        return list(self._tables)

    def table(self, name: str) -> "DataFrame":
        """Return a table of the report, e.g. ``settings`` or ``rises``.

        Raises:
            ImportError: pandas is not installed.
            ValueError: there is no such table; says which ones there are.
        """
        pandas = optional("pandas", "report", "A table of a study")
        found = self._tables
        if name not in found:
            raise ValueError(
                f"There is no table '{name}'; there are: {', '.join(found) or 'none'}."
            )
        frame: DataFrame = pandas.DataFrame(found[name])
        return frame

    @property
    def figures(self) -> list[str]:
        """The names that ``figure`` takes: what the report draws.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return list(self._drawings)

    def figure(self, name: str) -> StudyFigure:
        """Draw a figure of the report, e.g. ``rises-gptq-4bit-g128``.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no such figure; says which ones there are.
        """
        found = self._drawings
        if name not in found:
            raise ValueError(
                f"There is no figure '{name}'; there are: {', '.join(found) or 'none'}."
            )
        with style():
            return StudyFigure(name, found[name].draw())

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report and return its HTML file; see ``mlcalib.report.write_report``."""
        return study_report.write_report(
            self.folder, out, resamples=self._resamples, seed=self._seed
        )

    def __repr__(self) -> str:
        return f"Study in '{self.folder}': {self._state()}"

    def _repr_html_(self) -> str:
        plans = Markup(self.plans._repr_html_()) if self.plans else Markup()
        if not self._exists:
            return html.page(html.heading(repr(self)), plans)
        rows = [row for report in self._computed.models for row in _standings(report)]
        header = ["model", "quantizer", "calibrated on", "mean rise of the loss", "worst", ""]
        return html.page(
            html.heading(repr(self)),
            html.table(header, rows, texts=3) if rows else Markup(),
            html.listing(
                missing for report in self._computed.models for missing in report.missing()
            ),
            html.folded("plan", plans, opened=False) if self.plans else Markup(),
        )

    @property
    def _exists(self) -> bool:
        return (self.folder / "study.json").is_file()

    def _state(self) -> str:
        if not self._exists:
            return "not begun"
        plan, found = self._computed.study.plan, self._computed.models
        written = [name for name, variant in plan.variants.items() if variant.has_checkpoint]
        made = sum(name in report.model.records for report in found for name in written)
        measured = sum(len(report.model.evaluations) for report in found)
        text = f"{made} of {len(written) * len(found)} checkpoints made"
        if plan.evaluation.languages:
            total = (len(plan.variants) + 1) * len(found)
            text += f", {measured} of {total} models evaluated"
        return text

    @cached_property
    def _computed(self) -> Computed:
        return results(self.folder, resamples=self._resamples, seed=self._seed)

    @cached_property
    def _tables(self) -> dict[str, Records]:
        return tables(self._computed)

    @cached_property
    def _drawings(self) -> dict[str, Drawing]:
        with style():
            return {each.name: each for each in study_report.all_drawings(self._computed)}


def _standings(report: ModelReport) -> list[list[html.Cell]]:
    """Return a line for each setting of the main budget, the best of each quantizer first."""
    rows: list[list[html.Cell]] = []
    for grid in report.main:
        for place, each in enumerate(ranked(grid)):
            if each.mean is None or each.worst is None:
                continue
            code, worst = each.worst
            setting = each.column.setting or "no text"
            mean = signed(each.mean.value, 3)
            rows.append(
                [
                    report.model.slug,
                    grid.quantizer,
                    setting if place else html.strong(setting),
                    mean if place else html.strong(mean),
                    f"{signed(worst.value, 3)} {code}",
                    html.bar(max(each.mean.value, 0.0) / _most(report)),
                ]
            )
    return rows


def _most(report: ModelReport) -> float:
    means = [each.mean.value for grid in report.main for each in ranked(grid) if each.mean]
    return max([*means, 0.0]) or 1.0
