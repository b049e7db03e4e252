"""Tables, DataFrames and plots for people, model cards with tables, reports as pages."""

from mlcalib.notebook.frames import loss_frame, range_frame
from mlcalib.notebook.plots import loss_heatmap, range_heatmap
from mlcalib.report.card import write_model_card
from mlcalib.report.comparison.groups import GROUPINGS, group_table, grouped, language_table
from mlcalib.report.comparison.items import Items
from mlcalib.report.comparison.relative_changes import Changes, relative_changes
from mlcalib.report.evaluation_report import write_evaluation_report
from mlcalib.report.study_report import write_report
from mlcalib.report.tables.perplexity import markdown, metric_table, perplexity_table, rise_table

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
