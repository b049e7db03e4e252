"""``mlcalib.load``: a quantized checkpoint as a model on packed weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlcalib.checkpoints import GgufCheckpoint, open_checkpoint

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
            ``awq``; or a GGUF file), mlcalib's or another tool's.
        dtype: of activations and of what is not quantized: ``auto`` (the checkpoint's),
            ``float32``, ``bfloat16`` or ``float16``. Scales stay what they are.

    Raises:
        ValueError: the folder is invalid, not quantized, or not as its config describes; an
            unknown dtype.
        NotImplementedError: its format keeps no codes; experts that are packed in another way.
    """
    from transformers import AutoModelForCausalLM

    from mlcalib.checkpoints.packed.config import PackedConfig

    if dtype not in _DTYPES:
        raise ValueError(f"dtype is '{dtype}', expected one of: {', '.join(_DTYPES)}.")
    # transformers would name neither the folder nor what is wrong with it
    checkpoint = open_checkpoint(folder)
    if isinstance(checkpoint, GgufCheckpoint):
        return _load_file(checkpoint, dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=PackedConfig(), dtype=dtype, use_safetensors=True
    )
    return model


def _load_file(checkpoint: GgufCheckpoint, dtype: str) -> "PreTrainedModel":
    """Load a GGUF file; transformers is given all that is not packed."""
    import transformers

    from mlcalib.checkpoints.packed.config import PackedConfig

    config = checkpoint.contents.config
    config.quantization_config = checkpoint.section
    (file,) = set(checkpoint.files.values())
    model: PreTrainedModel = getattr(transformers, config.architectures[0]).from_pretrained(
        None,
        config=config,
        state_dict={name: checkpoint.tensor(name) for name in checkpoint.others},
        quantization_config=PackedConfig(file=str(file)),
        dtype=checkpoint.dtype if dtype == "auto" else dtype,
    )
    return model
