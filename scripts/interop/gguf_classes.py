"""Which classes of transformers are written to GGUF, and why others are not, as tables.

python gguf_classes.py      in mlcalib's environment, with the package gguf
"""

import gguf

from mlcalib.formats._gguf_families import families
from mlcalib.formats._gguf_inside import inside_classes
from mlcalib.formats._gguf_names import architecture_names
from mlcalib.formats._gguf_refused import refused_classes

_ENDS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def _short(names: list[str]) -> str:
    return ", ".join(sorted({_without_end(name) for name in names}))


def _without_end(name: str) -> str:
    for end in _ENDS:
        name = name.removesuffix(end)
    return name.removesuffix("_")


def main() -> None:
    """Print the tables."""
    by_name: dict[str, list[str]] = {}
    for name, family in families().items():
        by_name.setdefault(family.name, []).append(name)
    print("| in llama.cpp | classes |\n|---|---|")
    for name in sorted(by_name):
        print(f"| {name} | {_short(by_name[name])} |")
    print(f"\nLanguage models inside of: {_short(list(inside_classes()))}.\n")
    why: dict[str, list[str]] = {}
    for name, reason in refused_classes().items():
        why.setdefault(reason, []).append(name)
    print("| not written, because | classes |\n|---|---|")
    for reason, names in why.items():
        print(f"| {reason} | {_short(names)} |")
    named = set(architecture_names().values()) | {"clip"}
    refused = {"bitnet", "chameleon", "gemma4", "glm-dsa", "gptj", "mistral4", "nemotron_h"}
    rest = sorted(set(gguf.MODEL_ARCH_NAMES.values()) - named - refused)
    print(f"\nNo causal or image-text class of transformers has these: {', '.join(rest)}.")


if __name__ == "__main__":
    main()
