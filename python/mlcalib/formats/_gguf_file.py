"""A whole GGUF file: hyperparameters, tokenizer and tensors under llama.cpp's names.

As llama.cpp does it (``conversion``, a file for each group of families).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlcalib._core import build_info
from mlcalib.common.gguf_types import BLOCK_TYPES
from mlcalib.common.optional import optional
from mlcalib.formats._gguf_config import frequency_factors, hyperparameters, refusal, warn
from mlcalib.formats._gguf_families import family_of, written_classes
from mlcalib.formats._gguf_family import GgufFamily
from mlcalib.formats._gguf_inside import is_language, language_class, language_config
from mlcalib.formats._gguf_refused import why_not
from mlcalib.formats._gguf_tensors import Stored, stored_tensors
from mlcalib.formats._gguf_tokenizer import add_tokenizer, check_tokenizer
from mlcalib.models.base import GgufArchitecture

_FILE_TYPES = {kind: f"MOSTLY_{kind}" for kind in BLOCK_TYPES} | {
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
}
_log = logging.getLogger(__name__)
_PHI_3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
_ALWAYS_FLOAT = ("ffn_gate_inp", "_norm.", "position_embd", "conv1d", "shortconv.conv.")


def check_config(config: Any, architecture: str, tokenizer: Any) -> None:
    """Refuse what would not compute in llama.cpp what it computes in transformers.

    Raises:
        NotImplementedError: the architecture, or something in its config or tokenizer.
        ImportError: the package gguf is missing.
    """
    gguf = optional("gguf", "gguf", "writing GGUF")
    language = language_class(config, architecture)
    if (family := family_of(language)) is None:
        raise NotImplementedError(
            f"GGUF files of {architecture} are not written: {why_not(architecture)}. Written are: "
            f"{', '.join(written_classes())}. For others, save with --format dense and use "
            "llama.cpp's convert_hf_to_gguf.py."
        )
    text = language_config(config)
    if (what := refusal(text, family)) is not None:
        raise NotImplementedError(
            f"{architecture} is not written to GGUF with {what}: llama.cpp computes "
            f"'{family.name}' otherwise. Save in another format."
        )
    if family.name not in gguf.MODEL_ARCH_NAMES.values():
        raise NotImplementedError(
            f"The package gguf {metadata.version('gguf')} has no names for the tensors of "
            f"'{family.name}' ({architecture}); install a newer one."
        )
    check_tokenizer(tokenizer, text.vocab_size)
    warn(text)
    if text is not config:
        _log.warning(
            "The file will hold the language model alone. llama.cpp sees and hears with a file "
            "beside it, which its convert_hf_to_gguf.py --mmproj makes of the original checkpoint."
        )


def write_gguf(
    path: Path,
    config: Any,
    architecture: str,
    tokenizer: Any,
    tensors: Iterable[Stored],
) -> None:
    """Write a model file.

    Args:
        path: of the file.
        config: the model's.
        architecture: its class in transformers.
        tokenizer: its tokenizer.
        tensors: name in the model, values, and the type of packed blocks (uint8 [rows, bytes]) or
            None for a tensor as it is. A tied lm_head is not among them.

    Raises:
        ValueError: a tensor that the architecture does not know, or experts that are not alike.
        NotImplementedError: as ``check_config``.
    """
    gguf = optional("gguf", "gguf", "writing GGUF")
    if (family := family_of(language_class(config, architecture))) is None:
        raise NotImplementedError(f"GGUF files of {architecture} are not written")
    text = language_config(config)
    if text is not config:
        tensors = (each for each in tensors if is_language(each[0]))
    writer = gguf.GGUFWriter(path, family.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(_model_name(config.name_or_path or architecture, tokenizer))
    _add_config(gguf, writer, family, hyperparameters(text, family) | family.beside(config))
    add_tokenizer(writer, tokenizer, text.vocab_size)
    names = GgufArchitecture(family.name).tensor_names(text.num_hidden_layers)
    kinds: list[str] = []
    numbers: dict[str, list[float]] = {}
    rest = _without_numbers(family, tensors, numbers)
    for saved, values, kind in stored_tensors(text, architecture, family, names, rest):
        _add_tensor(gguf, writer, saved, values, kind)
        kinds += [kind] if kind is not None else []
    for name, factors in frequency_factors(text).items():
        writer.add_tensor(name, factors)
    for key, listed in numbers.items():
        writer.add_array(key, listed)
    common = _FILE_TYPES[max(set(kinds), key=kinds.count)] if kinds else "ALL_F32"
    writer.add_file_type(gguf.LlamaFileType[common])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _without_numbers(
    family: GgufFamily, tensors: Iterable[Stored], numbers: dict[str, list[float]]
) -> Iterator[Stored]:
    """Yield tensors; those that are one number of a block are listed by their keys instead."""
    for name, values, kind in tensors:
        key = next((found for end, found in family.numbers.items() if name.endswith(end)), None)
        if key is None:
            yield name, values, kind
        else:
            numbers.setdefault(key, []).append(values.item())


def _model_name(name: str, tokenizer: Any) -> str:
    """Return a model's name; one with phi-3 in it tells llama.cpp which tokens there are."""
    stem, tokens = Path(name).stem, tokenizer.get_vocab()
    if any(part in stem.lower() for part in ("phi-3", "phi3")) and _PHI_3 - set(tokens):
        return "model"
    return stem


def _add_config(gguf: Any, writer: Any, family: GgufFamily, values: Mapping[str, Any]) -> None:
    writer.add_string("general.quantized_by", f"mlcalib {build_info()['version']}")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        add[type(value)](f"{family.name}.{key}", value)


def _add_tensor(gguf: Any, writer: Any, name: str, values: Tensor, kind: str | None) -> None:
    values = values.detach().cpu().contiguous()
    # llama.cpp adds and multiplies norms and biases, and routes tokens, in float32.
    floats = values.dim() == 1 or not name.endswith(".weight")
    if kind is not None:
        writer.add_tensor(name, values.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
    elif floats or any(part in name for part in _ALWAYS_FLOAT):
        writer.add_tensor(name, values.float().numpy())
    elif values.dtype == torch.bfloat16:
        raw = values.view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, values.numpy())
