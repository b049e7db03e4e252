"""Tables for people, made from rows of results alone, and model cards that hold them."""

from mlcalib.report.card import write_model_card
from mlcalib.report.tables import markdown, metric_table, perplexity_table, rise_table

__all__ = ["markdown", "metric_table", "perplexity_table", "rise_table", "write_model_card"]
