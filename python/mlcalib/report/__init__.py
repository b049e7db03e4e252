"""Tables for people, made from rows of results alone."""

from mlcalib.report.tables import markdown, metric_table, perplexity_table, rise_table

__all__ = ["markdown", "metric_table", "perplexity_table", "rise_table"]
