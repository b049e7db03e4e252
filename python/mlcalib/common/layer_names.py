"""Names of linears: patterns that cover some of them, and which of them readers fuse."""

import re
from collections.abc import Collection, Iterable

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),  # deepseek_v2.py
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),  # qwen3_5.py
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "w13": ("w1", "w3"),  # lfm2.py
    "in_proj_qkvgfab": ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj"),  # kimi_linear.py
}
"""What vLLM and SGLang call a linear → those beside each other that they run as that one, on one
grid or all in floating point (``packed_modules_mapping`` in vllm/model_executor/models)."""


def fused_groups(names: Iterable[str]) -> list[list[str]]:
    """Return the linears that readers fuse, group by group, of those given.

    These are ``FUSED``, and all linears of the experts of a block (vLLM's ``FusedMoE``). Queries,
    keys and values are fused with ``b_proj`` only beside ``f_a_proj``, which makes decays.
    """
    groups: dict[str, list[str]] = {}
    known = list(names)
    decays = {name.rpartition(".")[0] for name in known if name.endswith(".f_a_proj")}
    for name in known:
        parent, _, leaf = name.rpartition(".")
        if experts := re.match(r"(.+\.experts)\.\d+\.", name):
            groups.setdefault(experts[1], []).append(name)
        for fused, leaves in FUSED.items():
            if experts or leaf not in leaves or (fused == "in_proj_qkvgfab") != (parent in decays):
                continue
            groups.setdefault(f"{parent}.{leaves[0]}", []).append(name)
    return [members for members in groups.values() if len(members) > 1]


def fused_name(members: Collection[str]) -> str:
    """Return what readers call the linear that a group of ``fused_groups`` becomes."""
    first = next(iter(members))
    if experts := re.match(r"(.+\.experts)\.\d+\.", first):
        return experts[1]
    parent = first.rpartition(".")[0]
    leaves = {name.rpartition(".")[2] for name in members}
    return next(f"{parent}.{fused}" for fused, parts in FUSED.items() if leaves <= set(parts))


def patterns(names: Collection[str], among: Iterable[str]) -> list[str]:
    r"""Return regular expressions that match whole names: those given, and no other of ``among``.

    Names that differ by the first number in them share one, such as
    ``model\.layers\.(0|3)\.mlp\.down_proj``, or ``\d+`` for all of ``among``.
    """
    wanted = set(names)
    alike: dict[str, dict[str, list[str]]] = {}  # a pattern with {} for the number → number → names
    for name in among:
        template, number = _template(name)
        alike.setdefault(template, {}).setdefault(number, []).append(name)
    found = []
    for template, by_number in alike.items():
        whole = [number for number, members in by_number.items() if wanted.issuperset(members)]
        if whole:
            every = len(whole) == len(by_number) and len(whole) > 1
            some = whole[0] if len(whole) == 1 else f"({'|'.join(whole)})"
            found.append(template.replace("{}", r"\d+" if every else some))
        rest = (by_number[number] for number in by_number if number not in whole)
        found += [re.escape(name) for members in rest for name in members if name in wanted]
    return found


def _template(name: str) -> tuple[str, str]:
    r"""Return a name as a pattern with {} for its first number, \d+ for others; the number."""
    first = ""
    parts = []
    for part in name.split("."):
        if not part.isdecimal():
            parts.append(re.escape(part))
        elif first:
            parts.append(r"\d+")
        else:
            first = part
            parts.append("{}")
    return r"\.".join(parts), first
