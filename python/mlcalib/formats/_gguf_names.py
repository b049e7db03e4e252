"""What llama.cpp calls the tensors of a model of transformers.

Of classes whose files are written, and of those in the table below: it is enough to name tensors,
and so for importance matrices and the types of a mix.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mlcalib.formats._gguf_families import families, family_of
from mlcalib.formats._gguf_inside import language_class
from mlcalib.formats._gguf_tensors import stored_name
from mlcalib.models import gguf_architectures
from mlcalib.models.base import GgufArchitecture

_NAMES = {
    "FalconH1ForCausalLM": "falcon-h1",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Llama4ForConditionalGeneration": "llama4",
    "LlavaForConditionalGeneration": "llama",
    "PhimoeForCausalLM": "phimoe",
    "VoxtralForConditionalGeneration": "llama",
}
"""Of classes without a family, as llama.cpp's converters register them (``@ModelBase.register`` in
``conversion``), of those whose converter leaves the inputs of linears in their order."""


def architecture_name(config: Any, architecture: str) -> str | None:
    """Return llama.cpp's name of a class of transformers, or of the language model inside; or None.

    Args:
        config: the model's.
        architecture: its class in transformers.
    """
    architecture = language_class(config, architecture)
    if (family := family_of(architecture)) is not None:
        return family.name
    if (known := gguf_architectures().get(architecture)) is not None:
        return known.name
    return _NAMES.get(architecture)


def architecture_names() -> dict[str, str]:
    """Return class of transformers → its name in llama.cpp, of all that are known."""
    known = {name: each.name for name, each in gguf_architectures().items()}
    return _NAMES | {name: each.name for name, each in families().items()} | known


def gguf_names(
    config: Any, architecture: str, saved_names: Mapping[str, str] | None = None
) -> Callable[[str], str]:
    """Return what tells the name of a linear's weight in a GGUF file, by its name in the model.

    It raises NotImplementedError for a linear that has none. Of a linear that files hold in several
    tensors it tells the first.

    Args:
        config: the model's.
        architecture: class in transformers.
        saved_names: see ``Adapter.saved_names``: these are tried, too.

    Raises:
        NotImplementedError: llama.cpp's name of the class is not known.
        ImportError: the package gguf is missing.
    """
    if (known := architecture_name(config, architecture)) is None:
        raise NotImplementedError(
            f"llama.cpp's names of the tensors of {architecture} are not known to mlcalib; known "
            f"are those of {', '.join(sorted(architecture_names()))}"
        )
    family = family_of(architecture)
    text = config.get_text_config()
    names = GgufArchitecture(known).tensor_names(text.num_hidden_layers)
    firsts = {part: parts[0] for part, parts in family.splits.items()} if family else {}
    renamed = [firsts | dict(family.names) if family else {}]
    renamed += [{part: other} for part, other in (saved_names or {}).items()]

    def find(linear: str) -> str:
        tensor = f"{linear}.weight"
        found = [saved for each in renamed if (saved := stored_name(tensor, each, names))]
        if not found:
            raise NotImplementedError(f"{linear} has no name in GGUF files of {architecture}")
        return family.renamed(found[0], text) if family else found[0]

    return find
