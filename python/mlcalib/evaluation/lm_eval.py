"""The model ``mlcalib`` for lm-evaluation-harness: any model that mlcalib reads.

    mlcalib lm-eval run --model mlcalib --model_args pretrained=DIR --tasks xnli_sw

In Python it is ``lm_eval.simple_evaluate("mlcalib", …)`` after ``import mlcalib``, which adds its
name to those of the harness (``evaluation/registration.py``).
"""

import logging
from typing import Any

import torch

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.evaluation import evaluation_dtype
from mlcalib.evaluation.tasks.model import TaskModel
from mlcalib.models.device import choose_device
from mlcalib.models.loading import load_tokenizer

_log = logging.getLogger(__name__)


class LoadedModel(TaskModel):
    """A model that is given by its name, as lm-eval makes it from ``--model_args``.

    Args:
        pretrained: a folder in any format that mlcalib reads, a hub name, or a GGUF file.
        dtype: ``auto`` (bfloat16 on a CPU with AMX, elsewhere as stored), ``float32``,
            ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``, the default (a GPU, where there is one
            and mlcalib was built for it). If torch sees no GPU it is the CPU; a warning then says
            so.
        batch_size: as for ``TaskModel``.
        max_length: as for ``TaskModel``.
        options: options of lm-eval's ``hf``: ``max_batch_size``, ``add_bos_token``, ….

    Raises:
        FileNotFoundError, ValueError: see ``mlcalib.checkpoints.packed.load_to_run``.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: Any = None,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        asked = str(device or "auto")
        if asked.startswith("cuda") and not torch.cuda.is_available():  # lm-eval's command asks
            _log.warning("there is no CUDA device here; the model runs on the CPU")
            asked = "cpu"
        place = choose_device(asked)
        dtype = evaluation_dtype([pretrained], dtype, place)
        super().__init__(
            load_to_run(pretrained, dtype, place),
            load_tokenizer(pretrained),
            batch_size=batch_size,
            max_length=max_length,
            **options,
        )
