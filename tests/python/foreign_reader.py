"""Checkpoints as transformers reads them without mlcalib: dense or decompressed, never packed."""

import json
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def from_transformers(folder: Path, **options: Any) -> Any:
    """Load a checkpoint by the reader of transformers, for which its own config asks."""
    section = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if section is not None:
        assert section["quant_method"] == "compressed-tensors"  # the others need GPTQModel
        dequantize = section.get("dequantize", False)
        options["quantization_config"] = CompressedTensorsConfig(dequantize=dequantize)
    with warnings.catch_warnings():  # that the checkpoint has a config too
        warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)
        return AutoModelForCausalLM.from_pretrained(folder, **options)
