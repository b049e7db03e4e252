"""A tiny model of each class that is written to GGUF, and files of them in float32.

``scripts/interop/gguf_families.py`` shows that llama.cpp computes the same logits.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from small_gguf_cases import CASES, VISION
from small_tokenizer import make_tokenizer

from mlcalib.formats import formats
from mlcalib.models import adapter_for
from mlcalib.models.experts import unfuse

__all__ = ["CASES", "file_digest", "gguf_class", "gguf_config", "gguf_model", "write_gguf_model"]


def gguf_class(case: str) -> type[Any]:
    """Return the class of a case."""
    prefix, options = CASES[case]
    inside = ("ForConditionalGeneration",)
    kinds = inside if "text_config" in options else ("ForCausalLM", "LMHeadModel")
    names = [f"{prefix.removesuffix('Text')}{kind}" for kind in kinds]
    return next(getattr(transformers, name) for name in names if hasattr(transformers, name))


def gguf_config(case: str) -> Any:
    """Return the config of a case."""
    prefix, options = CASES[case]
    sizes = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    options = sizes | options
    if "text_config" in options:
        options = {"vision_config": VISION, **CASES[case][1]}
        options["text_config"] = sizes | options["text_config"]
    return getattr(transformers, f"{prefix}Config")(**options)


def gguf_model(case: str) -> Any:
    """Return a model of a case; every number in it, norms and biases too, is its own."""
    config = gguf_config(case)
    model = gguf_class(case)(config)
    ones = ("gemma", "qwen3_next", "qwen3_5", "step3p7")  # whose norms multiply by 1 + weight
    offset = config.model_type.startswith(ones) or config.model_type == "nemotron"
    offset = offset and not config.model_type.startswith("gemma3n")
    tensors = dict(model.named_parameters())
    kept = model.state_dict()
    tensors |= {name: each for name, each in model.named_buffers() if name in kept}
    for number, (name, parameter) in enumerate(tensors.items()):
        norm = "norm" in name and name.endswith("weight")
        count = torch.arange(parameter.numel()) + 997 * number
        scattered = (count * count * 7919 + count * 104729) % 65521  # the same on every processor
        values = (scattered.double() / 65521 - 0.5) * 0.5
        scale = 0.5 if norm or "bias" in name else 1.0
        values = values * scale + (1.0 if norm and not offset else 0.0)
        parameter.data = values.reshape(parameter.shape).float()
    return model.eval()


def write_gguf_model(model: Any, folder: Path, adapter: Any = None) -> Path:
    """Write a model as it is, nothing quantized, and return the file.

    Args:
        model: its experts come apart, unless an adapter is given.
        folder: for the file.
        adapter: of a model whose experts have come apart.
    """
    if adapter is None:
        unfuse(model, adapter_for(model))
    form, tokenizer, name = formats.get("gguf")(), make_tokenizer(), type(model).__name__
    form.check_model(model.config, name, tokenizer)
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    contents = ((key, each) for key, each in model.state_dict().items() if key not in tied)
    folder.mkdir(parents=True, exist_ok=True)
    form.write_file(folder, model.config, name, tokenizer, contents)
    return folder / "model.gguf"


def file_digest(file: Path) -> str:
    """Return the sha256 of all that a file says but of its tokenizer and of who wrote it."""
    reader = gguf.GGUFReader(file)
    digest = sha256()
    for field in sorted(reader.fields.values(), key=lambda each: each.name):
        if not field.name.startswith(("tokenizer.", "general.", "GGUF.")):
            value = field.contents()  # logarithms may differ in their last bits
            shown = f"{value:.5g}" if isinstance(value, float) else repr(value)
            digest.update(f"{field.name}={shown}".encode())
    for tensor in sorted(reader.tensors, key=lambda each: each.name):
        shape = tuple(int(size) for size in tensor.shape)
        digest.update(repr((tensor.name, tensor.tensor_type.name, shape)).encode())
        data = tensor.data.round(4) if tensor.name.startswith("rope_") else tensor.data
        digest.update(data.tobytes())
    return digest.hexdigest()
