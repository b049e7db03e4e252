"""``mlcalib.load``: a quantized checkpoint as a model on packed weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlcalib.formats import open_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(folder: str | Path, dtype: str = "auto") -> "PreTrainedModel":
    """Load a quantized checkpoint; its quantized linears keep packed weights.

    They are ``PackedLinear``, filled one after the other, so that loading takes little more memory
    than the model itself. Embeddings, norms and linears that are not quantized are as stored. The
    model is for inference on the CPU; to save or quantize it again, use the folder.

    Args:
        folder: a checkpoint in a format that keeps codes (``compressed-tensors``, ``gptq``,
            ``awq``), mlcalib's or another tool's.
        dtype: of activations and of what is not quantized: ``auto`` (the checkpoint's),
            ``float32``, ``bfloat16`` or ``float16``. Scales stay what they are.

    Raises:
        ValueError: the folder is invalid, not quantized, or not as its config describes; an
            unknown dtype.
        NotImplementedError: its format keeps no codes; experts that are packed in another way.
    """
    from transformers import AutoModelForCausalLM

    from mlcalib.packed.config import PackedConfig

    if dtype not in _DTYPES:
        raise ValueError(f"dtype is '{dtype}', expected one of: {', '.join(_DTYPES)}.")
    open_checkpoint(folder)  # transformers would name neither the folder nor what is wrong with it
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=PackedConfig(), dtype=dtype, use_safetensors=True
    )
    return model
