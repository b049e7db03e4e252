"""Results as DataFrame, table, plot and HTML: languages down, models across."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from markupsafe import Markup

from mlcalib.common.optional import optional
from mlcalib.common.registry import unknown
from mlcalib.notebook import html
from mlcalib.notebook.dots import dot_plot
from mlcalib.results.rows import Row
from mlcalib.results.scores import (
    LOWER_IS_BETTER,
    UNDIRECTED,
    label,
    model_of,
    scale_of,
    score_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_BOUNDS = ("low", "high", "p")  # of a metric; rows of their own, shown with it

Cells = Mapping[str, Mapping[str, Row]]
"""Language → label of a model → row."""


def headline(rows: Sequence[Row]) -> str:
    """Say of how many models, languages and tasks there are rows, and which."""
    if not rows:
        return "Results: no rows"
    models = _labels(rows).values()
    codes = dict.fromkeys(row.language for row in rows)
    metrics: dict[str, list[str]] = {}
    for row in rows:
        if row.metric not in metrics.setdefault(row.task, []):
            metrics[row.task].append(row.metric)
    tasks = "; ".join(f"{task} ({', '.join(found)})" for task, found in metrics.items())
    return (
        f"Results: {len(rows):,} rows of {len(models)} models ({', '.join(models)}) in "
        f"{len(codes)} languages ({' '.join(codes)})\n{tasks}"
    )


def frame(rows: Sequence[Row]) -> "DataFrame":
    """Return a line for each row, and a column for each of its fields."""
    pandas = optional("pandas", "notebook", "A DataFrame of results")
    found: DataFrame = pandas.DataFrame(
        [asdict(row) for row in rows], columns=list(Row.__dataclass_fields__)
    )
    return found


def pivot(rows: Sequence[Row], metric: str | None, task: str | None) -> "DataFrame":
    """Return values of one metric; see ``Results.pivot``."""
    pandas = optional("pandas", "notebook", "A table of results")
    wanted, found = _chosen(rows, metric, task)
    several = len(found) > 1
    values = {
        (name, code) if several else code: {each: row.value for each, row in by.items()}
        for name, cells in found.items()
        for code, by in cells.items()
    }
    table: DataFrame = pandas.DataFrame.from_dict(values, orient="index", dtype=float)
    if several:
        table.index = pandas.MultiIndex.from_tuples(list(values), names=["task", "language"])
    else:
        table.index.name = "language"
    table.columns.name = wanted
    return table[[name for name in _labels(rows).values() if name in table]]


def plot(rows: Sequence[Row], metric: str | None, task: str | None) -> "Figure":
    """Return a figure; see ``Results.plot``."""
    wanted, found = _chosen(rows, metric, task)
    scale = scale_of(wanted)
    measured = {model for cells in found.values() for by in cells.values() for model in by}
    models = [name for name in _labels(rows).values() if name in measured]
    panels = {
        name: {
            model: {
                code: (scale * by[model].value, scale * (by[model].stderr or 0.0))
                for code, by in cells.items()
                if model in by
            }
            for model in models
        }
        for name, cells in found.items()
    }
    return dot_plot(panels, f"{wanted}, %" if scale == 100 else wanted)


def as_html(rows: Sequence[Row]) -> str:
    """Return a table for each task and metric; the best of the quantized models stands out."""
    parts = [html.heading(headline(rows).partition("\n")[0])]
    pairs = list(dict.fromkeys((row.task, row.metric) for row in rows))
    beside = {(task, f"{metric}_{end}") for task, metric in pairs for end in _BOUNDS}
    for task, metric in pairs:
        if (task, metric) not in beside:
            cells = _chosen(rows, metric, task)[1][task]
            bounds = _bounds(rows, task, metric)
            table = _table(rows, metric, cells, bounds)
            named = _named(metric) if metric == task else f"{task}: {_named(metric)}"
            parts.append(html.folded(named, table, opened=len(parts) == 1))
    return html.page(*parts)


def _table(
    rows: Sequence[Row], metric: str, cells: Cells, bounds: Mapping[tuple[str, str], str]
) -> Markup:
    labels = {name: model for model, name in _labels(rows).items()}
    models = [name for name in labels if any(name in by for by in cells.values())]
    quantized = [name for name in models if labels[name][1] != "float"]
    lines: list[list[html.Cell]] = []
    for code, by in cells.items():
        values = {name: by[name].value for name in quantized if name in by}
        pick = min if metric in LOWER_IS_BETTER else max
        best = pick(values.values()) if len(values) > 1 and metric not in UNDIRECTED else None
        line: list[html.Cell] = [code]
        for name in models:
            text, error = score_text(by[name]) if name in by else ("not measured", "")
            text = " ".join(filter(None, (text, error, bounds.get((code, name), ""))))
            line.append(html.strong(text) if name in values and values[name] == best else text)
        lines.append(line)
    return html.table(["language", *models], lines)


def _named(metric: str) -> str:
    unit = ", %" if scale_of(metric) == 100 else ""
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    return f"{metric}{unit}" + ("" if metric in UNDIRECTED else f" ({better} is better)")


def _bounds(rows: Sequence[Row], task: str, metric: str) -> dict[tuple[str, str], str]:
    """Return language and model → the interval of a metric that has rows of its ends."""
    ends: list[Cells] = []
    for end in _BOUNDS[:2]:
        of_end = [row for row in rows if (row.task, row.metric) == (task, f"{metric}_{end}")]
        ends.append(_cells(rows, of_end))
    low, high = ends
    return {
        (code, name): f"[{row.value:.4f}, {high[code][name].value:.4f}]"
        for code, by in low.items()
        for name, row in by.items()
        if name in high.get(code, {})
    }


def _labels(rows: Sequence[Row]) -> dict[tuple[str, str, str], str]:
    models = list(dict.fromkeys(map(model_of, rows)))
    return {model: label(model, models) for model in models}


def _chosen(
    rows: Sequence[Row], metric: str | None, task: str | None
) -> tuple[str, dict[str, Cells]]:
    """Return the metric, by default the first, and task → cells."""
    if not rows:
        raise ValueError("There are no rows; mlcalib.evaluate returns some.")
    if task is not None and all(row.task != task for row in rows):
        raise ValueError(unknown("task", task, (row.task for row in rows)))
    of_task = [row for row in rows if task in (None, row.task)]
    wanted = of_task[0].metric if metric is None else metric
    kept = [row for row in of_task if row.metric == wanted]
    if not kept:
        raise ValueError(unknown("metric", wanted, (row.metric for row in of_task)))
    found: dict[str, list[Row]] = {}
    for row in kept:
        found.setdefault(row.task, []).append(row)
    return wanted, {name: _cells(rows, of) for name, of in found.items()}


def _cells(rows: Sequence[Row], chosen: Sequence[Row]) -> Cells:
    """Return language → label of a model → row, of rows of one task and metric."""
    labels = _labels(rows)
    found: dict[str, dict[str, Row]] = {}
    for row in chosen:
        by = found.setdefault(row.language, {})
        name = labels[model_of(row)]
        if name in by:
            raise ValueError(
                f"{row.task} {row.metric} of {name} in '{row.language}' is there twice; keep the "
                "rows of one run, or give models other names (a mapping for mlcalib.evaluate)."
            )
        by[name] = row
    return found
