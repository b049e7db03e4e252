"""What blocks share, and how much of them can be quantized."""

import logging
from collections.abc import Collection, Mapping

from mlcalib.models.discovery.trace import Call
from mlcalib.models.kinds import Kind

_log = logging.getLogger(__name__)

MOST = 0.9
"""Share of the weights of blocks below which a model is said to be quantized in part."""


def note_shared(calls: list[Call]) -> dict[str, str]:
    """Note in calls what blocks share; return tensor → the first block's tensor that it is.

    Args:
        calls: of blocks whose weights are made up: each has memory of its own.
    """
    places: dict[tuple[int, tuple[int, ...]], dict[str, tuple[Call, str]]] = {}
    for call in calls:
        for path, module in call.module.named_modules():
            for key, each in module.named_parameters(recurse=False):
                if each.is_floating_point() and each.numel():
                    name = ".".join(filter(None, (call.name, path, key)))
                    places.setdefault((each.data_ptr(), tuple(each.shape)), {})[name] = call, path
    later: dict[str, str] = {}
    modules: dict[Kind, set[str]] = {}
    for found in places.values():
        if len({call.name for call, _ in found.values()}) > 1:
            first, *others = found
            later |= dict.fromkeys(others, first)
            for call, path in found.values():
                modules.setdefault(call.kind, set()).add(path)
    for call in calls:
        call.shared = frozenset(modules.get(call.kind, ()))
    return later


def check_tied(tied: Mapping[str, str], calls: list[Call]) -> None:
    """Refuse blocks whose weights are also those of modules that are no blocks.

    Args:
        tied: tensor of the model → the one that it is tied to.
        calls: of all blocks.

    Raises:
        NotImplementedError: names the tensors.
    """
    starts = tuple(f"{call.name}." for call in calls)
    for target, source in tied.items():
        if target.startswith(starts) != source.startswith(starts):
            raise NotImplementedError(
                f"{target} is tied to {source}, and only one of the two is in a block that runs on "
                "text: the other would be quantized unseen; that is not supported."
            )


def check_share(name: str, calls: list[Call], linears: Mapping[Kind, Collection[str]]) -> None:
    """Refuse a model of which nothing would be quantized, and say where much is not.

    Args:
        name: of the model's class.
        calls: of all blocks.
        linears: kind of block → the linears that are quantized.

    Raises:
        NotImplementedError: there are none.
    """
    taken, others = 0, dict[str, int]()
    for call in calls:
        for path, module in call.module.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                if path in linears[call.kind]:
                    taken += parameter.numel()
                elif parameter.dim() > 1:
                    where = f"{type(module).__name__}.{key}"
                    others[where] = others.get(where, 0) + parameter.numel()
    share = taken / max(taken + sum(others.values()), 1)
    if share < MOST:
        found = ", ".join(sorted(others, key=lambda where: -others[where])[:4])
        message = (
            f"{share:.0%} of the weights in the blocks of {name} can be quantized; the others "
            f"({found}) stay in floating point"
        )
        if not taken:
            raise NotImplementedError(f"{message}: nothing would be quantized.")
        _log.warning("%s", message)
