"""The tensors in a model's folder, compared with those that its class expects."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common import compat
from mlcalib.models import Adapter, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import architecture, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREDICTING = re.compile("nextn|mtp")
"""Keys of config.json that tell of layers for multi-token prediction."""

_CODES = (".qweight", ".weight_packed")


def own_head(
    weights: StoredWeights, model: "PreTrainedModel", adapter: Adapter
) -> tuple[str, str] | None:
    """Return two weights that config.json ties although the files hold different ones, by name.

    Args:
        weights: what is in the folder.
        model: without weights.
        adapter: its family.

    Returns:
        The names in the model; None where config.json ties none, or the two are equal.
    """
    for target, source in compat.tied_weights(model).items():
        origins = adapter.origins((target, source), weights.likes())
        names = [origins[each].names[0] for each in (target, source) if each in origins]
        if len(set(names)) > 1:
            first, second = (tensor for _, tensor in weights.read(names))
            if not torch.equal(first, second):
                return target, source
    return None


def expected_shapes(model: "PreTrainedModel", adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Return tensor → its shape, of all that a folder must hold, by their names there.

    Args:
        model: without weights, its experts taken apart.
        adapter: its family.
    """
    tied = compat.tied_weights(model)
    return {
        adapter.saved(name): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }


def check_expected(
    where: str,
    expected: Mapping[str, tuple[int, ...]],
    there: Mapping[str, tuple[int, ...] | None],
    model: "PreTrainedModel",
    adapter: Adapter,
) -> None:
    """Refuse tensors that are missing, that have other shapes, or that are further layers.

    Args:
        where: the folder, for messages.
        expected: see ``expected_shapes``.
        there: tensor → its shape; None where that is not known.
        model: without weights.
        adapter: its family.

    Raises:
        ValueError: names the first of them, and says what to do.
    """
    kind = type(model).__name__
    if missing := [name for name in expected if name not in there]:
        raise ValueError(_lacks(where, missing, expected, list(there), kind))
    for name, wanted in expected.items():
        found = there[name]
        if found is not None and found != wanted:
            raise ValueError(
                f"{where}: {name} is {list(found)}, but the model that config.json describes has "
                f"{list(wanted)} there. The config belongs to another model, or the architecture "
                "differs from transformers' class."
            )
    blocks = [name for name, _ in adapter.named_blocks(model)]
    further = f"{adapter.blocks}.{len(blocks)}"
    own = _inside(blocks[0], expected) if blocks else set()
    predicting = any(PREDICTING.search(key) for key, each in model.config.to_dict().items() if each)
    if own <= _inside(further, there) and not predicting:
        raise ValueError(
            f"{where}: config.json describes {len(blocks)} layers, but there are tensors of more "
            f"({further}): the config belongs to another model, or was changed without the tensors."
            " Give the model's own config.json."
        )


def check_model(weights: StoredWeights) -> bool:
    """Refuse a folder of which transformers would make another model than its files hold.

    Args:
        weights: what is in the folder. Of families that mlcalib does not know only codes are
            looked for.

    Returns:
        Whether the files hold output embeddings of their own, although config.json ties them.

    Raises:
        CannotReadError: config.json describes no model that transformers has.
        ValueError: see ``check_expected``; codes that nothing explains.
    """
    where = str(weights.folder)
    try:
        adapter = find_adapter(architecture(where))
    except NotImplementedError:
        weights.check_dtypes(name for name in weights.names if name.endswith(".weight"))
        return False
    model = skeleton(where)
    if own := own_head(weights, model, adapter) is not None:
        model = skeleton(where, untied=True)
    unfuse(model, adapter)
    expected = expected_shapes(model, adapter)
    there = {name: weights.shape(name) for name in weights.names}
    check_expected(where, expected, there, model, adapter)
    weights.check_dtypes(expected)
    return own


def _inside(block: str, names: Iterable[str]) -> set[str]:
    """Return what the tensors of a block are called in it."""
    return {name.removeprefix(block) for name in names if name.startswith(f"{block}.")}


def _lacks(
    where: str, missing: list[str], expected: Mapping[str, object], there: list[str], kind: str
) -> str:
    """Say what is missing: whether tensors have other names, or are not there at all."""
    said = f"{where} lacks {len(missing)} tensors that {kind} needs, such as {missing[0]}"
    alike = next((name for name in there if name.endswith(f".{missing[0]}")), None)
    if alike is not None:
        return (
            f"{said}; there is {alike}. Its names are not those of transformers' own checkpoints: "
            "rename the tensors, or load it with the library that wrote it and save it with "
            "transformers (save_pretrained)."
        )
    code = next(
        (
            name
            for name in there
            if name.startswith(f"{missing[0].removesuffix('.weight')}.") and name.endswith(_CODES)
        ),
        None,
    )
    if code is not None:
        return (
            f"{said}; there are codes, such as {code}, and no quantization_config that explains "
            "these. Restore the section, or get the model again."
        )
    if len(missing) == len(expected):
        return (
            f"{said}; there are others, such as {there[0] if there else 'none'}. Its names are not "
            "those of transformers' own checkpoints; get the model in the layout of transformers."
        )
    return (
        f"{said}. The download is not complete, or config.json belongs to another model "
        "(transformers would start these tensors at random); get the model again."
    )
