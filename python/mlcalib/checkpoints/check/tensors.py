"""Tensors of a checkpoint: names and shapes from headers, values one tensor at a time."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlcalib.checkpoints import Checkpoint
from mlcalib.checkpoints.config_check import known_family
from mlcalib.checkpoints.expected import PREDICTING
from mlcalib.common.errors import CannotReadError
from mlcalib.common.safetensors_read import TensorEntry, read_header
from mlcalib.formats import Format, Problem

_GROUPS = "num_key_value_heads"
LOST_HEAD = (
    "lm_head.weight differs from the embedding, but config.json ties the two "
    "(tie_word_embeddings true): readers would lose the head"
)
_LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")
Shapes = dict[str, tuple[int, ...]]


def shapes_of(
    files: Mapping[str, Path], linears: Collection[str] = (), form: Format | None = None
) -> Shapes:
    """Return the shape of each tensor, and of quantized linears as ``name.weight`` (out, in).

    Args:
        files: tensor → the file that has it.
        linears: those that are quantized.
        form: their format.
    """
    headers: dict[Path, dict[str, TensorEntry]] = {file: {} for file in files.values()}
    for file in headers:
        headers[file] = read_header(file)
    found = {name: headers[file][name].shape for name, file in files.items()}
    shapes = dict(found)
    for name in linears:
        if form is not None and (shape := form.stored_shape(name, found)) is not None:
            shapes[f"{name}.weight"] = shape
    return shapes


def linear_names(shapes: Shapes) -> list[str]:
    """Return the names of all matrices."""
    return [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    ]


def check_names(
    config: Mapping[str, Any], shapes: Shapes, linears: Collection[str]
) -> Iterator[Problem]:
    """Yield what the config promises otherwise than the tensors are.

    Of families that mlcalib does not know nothing is said: their tensors may be anything.
    """
    if not known_family(config):
        return
    layers = config.get("num_hidden_layers")
    found = {int(match[1]) for name in shapes if (match := _LAYER.search(name))}
    if type(layers) is int and 1 <= layers <= 10_000 and found:
        if missing := sorted(set(range(layers)) - found):
            yield (
                "damaged",
                f"config.json has {layers} layers, but layer {missing[0]} has no tensors",
            )
        if strange := sorted(found - set(range(layers))):
            yield _extra_layers(config, layers, strange)
    yield from _check_shapes(config, shapes)
    yield from _check_head(config, shapes, linears)


def _extra_layers(config: Mapping[str, Any], layers: int, strange: list[int]) -> Problem:
    """Say what layers after the last one are."""
    predicting = [key for key, value in config.items() if PREDICTING.search(key) and value]
    if predicting:
        return (
            "note",
            f"layers {strange[0]} to {strange[-1]}, after the model's {layers}, are for "
            f"multi-token prediction ({predicting[0]})",
        )
    return (
        "damaged",
        f"config.json has {layers} layers, but there are tensors of layer {strange[0]}",
    )


def _check_shapes(config: Mapping[str, Any], shapes: Shapes) -> Iterator[Problem]:
    """Compare shapes with the config's.

    A projection that has another shape than the config's in every layer, the same in all, is of
    another kind of model; one that is odd in some layers, or outside of them, is damaged.
    """
    for part, expected in _expected(config).items():
        named = {
            name: shape
            for name, shape in shapes.items()
            if name == f"{part}.weight" or name.endswith(f".{part}.weight")
        }
        wrong = {name: shape for name, shape in named.items() if not _fits(shape, expected)}
        alike = len(wrong) == len(named) > 1 and len(set(wrong.values())) == 1
        for name, shape in list(wrong.items())[: 1 if alike else None]:
            shown = [size for size in shape if size != -1]
            problem = f"{name} has shape {shown}, but config.json says {list(expected)}"
            if alike:
                architecture = config["architectures"][0]
                problem += f", and so in all layers: no {architecture} of transformers is like it"
            yield ("unread" if alike else "damaged"), problem


def _fits(shape: tuple[int, ...], expected: tuple[int, int]) -> bool:
    rows, columns = expected
    return len(shape) == 2 and shape[0] in (-1, rows) and shape[1] in (-1, columns)


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return part of a name → shape (out, in), of what the config tells."""
    keys = ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
    if any(type(config.get(key)) is not int for key in keys):
        return {}
    hidden, inner, words, count = (int(config[key]) for key in keys)
    head, groups = config.get("head_dim") or hidden // max(count, 1), config.get(_GROUPS)
    if type(head) is not int:
        return {}
    kv = (groups if type(groups) is int else count) * head
    return {
        "self_attn.q_proj": (count * head, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, count * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "model.embed_tokens": (words, hidden),
        "lm_head": (words, hidden),
    }


def _check_head(
    config: Mapping[str, Any], shapes: Shapes, linears: Collection[str]
) -> Iterator[Problem]:
    embedding = next((name for name in shapes if name.endswith("embed_tokens.weight")), None)
    if embedding is None:
        return
    if embedding != "model.embed_tokens.weight":
        wanted = f"{config['architectures'][0]} of transformers has model.embed_tokens.weight there"
        yield "unread", f"its tensors have other names, such as {embedding}; {wanted}"
        return
    tied = config.get("tie_word_embeddings")
    if tied is False and "lm_head.weight" not in shapes:
        yield (
            "damaged",
            "there is no lm_head, and config.json says it is not tied to the embedding "
            "(tie_word_embeddings false): readers would start it at random",
        )
    if tied and "lm_head" in linears:
        yield (
            "damaged",
            "lm_head is quantized, but config.json ties it to the embedding "
            "(tie_word_embeddings true): readers would use the embedding",
        )


def check_values(checkpoint: Checkpoint, read: dict[str, tuple[int, int]]) -> Iterator[Problem]:
    """Yield what is wrong with the values of tensors, read one linear or tensor at a time.

    Args:
        checkpoint: to read.
        read: gets the shape (out, in) of each linear that could be read.
    """
    unread: list[str] = []
    for name in checkpoint.linears:
        try:
            linear = checkpoint.linear(name)
        except CannotReadError as error:
            unread.append(str(error))
            continue
        except (ValueError, TypeError, RuntimeError) as error:
            yield "damaged", str(error)
            continue
        rows, columns = linear.codes.shape
        read[name] = (rows, columns)
        scale = linear.grid.scale
        if not scale.isfinite().all():
            yield "damaged", f"{name} has scales that are not finite"
        expected = _columns(checkpoint.config, name)
        if expected is not None and columns != expected:
            yield (
                "damaged",
                f"{name} has {columns} input channels, but config.json says {expected}",
            )
    if unread:
        more = f"; and {len(unread) - 1} more linears" if unread[1:] else ""
        yield "unread", f"{unread[0]}{more}"
    for name in checkpoint.others:
        tensor = checkpoint.tensor(name)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield "damaged", f"{name} has values that are not finite"
    yield from _check_copies(checkpoint)


def _columns(config: Mapping[str, Any], name: str) -> int | None:
    """Return the input channels of a linear by the config, or None where it does not tell."""
    leaf = name.rpartition(".")[2]
    key = {"down_proj": "intermediate_size", "o_proj": None}.get(leaf, "hidden_size")
    known = leaf in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    known = known and known_family(config)
    value = config.get(key) if key and known and ".experts." not in name else None
    return value if type(value) is int and ".shared_expert" not in name else None


def _check_copies(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Compare a head that is stored with the embedding that it is tied to."""
    if not checkpoint.config.get("tie_word_embeddings"):
        return
    embedding = next(
        (name for name in checkpoint.others if name.endswith("embed_tokens.weight")), ""
    )
    if "lm_head.weight" not in checkpoint.others or not embedding:
        return
    head, embedded = checkpoint.tensor("lm_head.weight"), checkpoint.tensor(embedding)
    if head.shape != embedded.shape or not bool((head == embedded).all()):
        yield "damaged", LOST_HEAD
