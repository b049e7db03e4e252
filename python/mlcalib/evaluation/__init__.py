"""Evaluation: what quantization changed in each language."""

from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.evaluate import Evaluation, evaluate
from mlcalib.evaluation.fidelity import fidelity_rows
from mlcalib.evaluation.layer_losses import layer_losses
from mlcalib.evaluation.perplexity import (
    DocumentScores,
    Scores,
    definition,
    items_of,
    perplexity_of,
    rows_of,
    score,
)
from mlcalib.evaluation.reference import Reference, fidelity_of, reference_of
from mlcalib.evaluation.scorer import Scorer
from mlcalib.evaluation.subject import Subject, evaluation_dtype, evaluation_seq_len
from mlcalib.evaluation.text import eval_sequences, eval_text
from mlcalib.results.flips import flips
from mlcalib.results.rows import Results, Row, read_results, read_rows, write_results, write_rows

__all__ = [
    "Cache",
    "DocumentScores",
    "Evaluation",
    "Reference",
    "Results",
    "Row",
    "Scorer",
    "Scores",
    "Subject",
    "definition",
    "eval_sequences",
    "eval_text",
    "evaluate",
    "evaluation_dtype",
    "evaluation_seq_len",
    "fidelity_of",
    "fidelity_rows",
    "flips",
    "items_of",
    "layer_losses",
    "perplexity_of",
    "read_results",
    "read_rows",
    "reference_of",
    "rows_of",
    "score",
    "write_results",
    "write_rows",
]
