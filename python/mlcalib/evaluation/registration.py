"""Registers the model ``mlcalib`` with lm-evaluation-harness, without importing the harness."""

import warnings

from mlcalib.common import compat
from mlcalib.common.imports import when_imported


def register() -> None:
    """Add the model's name to those of the harness, now or when these are imported."""
    when_imported(compat.HARNESS_MODELS, _register)


def _register() -> None:
    try:
        compat.register_harness_model("mlcalib", "mlcalib.evaluation.lm_eval:LoadedModel")
    except Exception as error:  # whatever another release does, it works as without mlcalib
        warnings.warn(f"this lm-eval does not take the model mlcalib ({error!r})", stacklevel=2)
