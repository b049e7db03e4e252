"""Tables, DataFrames and plots for people, model cards with tables, reports as pages."""

from mlcalib.report.card import write_model_card
from mlcalib.report.evaluation import write_evaluation_report
from mlcalib.report.frames import loss_frame, range_frame
from mlcalib.report.groups import GROUPINGS, group_table, grouped, language_table
from mlcalib.report.items import Items
from mlcalib.report.plots import loss_heatmap, range_heatmap
from mlcalib.report.relative_changes import Changes, relative_changes
from mlcalib.report.study import write_report
from mlcalib.report.tables import markdown, metric_table, perplexity_table, rise_table

__all__ = [
    "GROUPINGS",
    "Changes",
    "Items",
    "group_table",
    "grouped",
    "language_table",
    "loss_frame",
    "loss_heatmap",
    "markdown",
    "metric_table",
    "perplexity_table",
    "range_frame",
    "range_heatmap",
    "relative_changes",
    "rise_table",
    "write_evaluation_report",
    "write_model_card",
    "write_report",
]
