"""The figures of a model, with the data behind them."""

from mlcalib.report.page.canvas import Drawing
from mlcalib.report.study_report.curve_figures import curves, point_records, scatter
from mlcalib.report.study_report.map_figures import layers, outside, rise_records, rises
from mlcalib.report.study_report.quality import curve_panels, limit
from mlcalib.report.study_report.results import ModelReport
from mlcalib.report.study_report.sizes import drawing


def drawings(report: ModelReport, prefix: str) -> list[Drawing]:
    """Return the figures of a model."""
    found = []
    end = limit(report)
    for grid in report.main:
        if grid.rises:
            name = f"{prefix}rises-{grid.quantizer}"
            found.append(Drawing(name, rises(grid, end), rise_records(grid)))
        if (ratios := layers(report, grid)) is not None:
            found.append(Drawing(f"{prefix}layers-{grid.quantizer}", *ratios))
    for quantizer in dict.fromkeys(grid.quantizer for grid in report.grids):
        points = report.points(quantizer)
        if panels := curve_panels(points):
            name = f"{prefix}curves-{quantizer}"
            found.append(Drawing(name, curves(points, panels), point_records(points)))
    if (size := drawing(report, prefix)) is not None:
        found.append(size)
    if (dots := scatter(report)) is not None:
        found.append(Drawing(f"{prefix}predicted", *dots))
    if (blocks := outside(report)) is not None:
        found.append(Drawing(f"{prefix}outside", *blocks))
    return found
