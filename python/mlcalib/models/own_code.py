"""Models whose modules are code of their checkpoint: run only where somebody asks for it."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlcalib.common.hub import split_revision
from mlcalib.models.loading import check_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_with_code(
    source: str | Path, dtype: str, tokenizer: "PreTrainedTokenizerBase | None"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a model and its tokenizer with the Python code that lies beside the weights.

    The code can do what the user of this process can do. Read it before.

    Args:
        source: a folder or a hub name.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.
        tokenizer: to be used in place of the model's own.

    Raises:
        OSError, ValueError: see ``transformers.AutoModelForCausalLM.from_pretrained``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_dtype(dtype)
    name, options = split_revision(str(source))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, trust_remote_code=True, use_safetensors=True, **options
    )
    model.config.name_or_path = str(source)
    model.config.use_cache = False
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True, **options)
    return model.eval(), tokenizer
