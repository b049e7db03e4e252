"""Lets lm-evaluation-harness know the model ``mlcalib``, without importing it."""

import warnings

from mlcalib.common import compat
from mlcalib.common.imports import when_imported


def register() -> None:
    """Put the model's name beside the harness's own, now or once they are imported."""
    when_imported(compat.HARNESS_MODELS, _register)


def _register() -> None:
    try:
        compat.register_harness_model("mlcalib", "mlcalib.evaluation.lm_eval:LoadedModel")
    except Exception as error:  # whatever another release does, it works as without mlcalib
        warnings.warn(f"this lm-eval does not take the model mlcalib ({error!r})", stacklevel=2)
