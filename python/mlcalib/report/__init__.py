"""Tables for people, made from rows of results alone."""

from mlcalib.report.tables import markdown, perplexity_table, rise_table

__all__ = ["markdown", "perplexity_table", "rise_table"]
