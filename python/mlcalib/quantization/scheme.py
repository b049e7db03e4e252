"""Schemes: the bits of weights and of activations, by the names that people know."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcalib.common.gguf_types import BLOCK_TYPES, MIXES
from mlcalib.common.registry import unknown
from mlcalib.quantizers import Method, chosen

_METHOD = "gptq"
_FORMAT = "compressed-tensors"


@dataclass(frozen=True)
class Scheme:
    """What a name stands for.

    Attributes:
        method: the quantizer, unless another one is asked for.
        bits: of a weight.
        symmetric: whether the zero point is fixed at the middle of the range.
        group_size: unless another one is asked for.
        numbers: what scales multiply; see ``GridSpec``.
        format: the one checkpoint format that holds it, or says how activations are rounded; None
            where any format will do.
        per_tensor: whether linears of one input have one scale; see ``QuantizerOptions``.
        mix: which linears lie on which grids; see ``QuantizerOptions``.
    """

    method: str
    bits: int
    symmetric: bool
    group_size: int
    format: str | None = None
    numbers: str = "integer"
    per_tensor: bool = False
    mix: str = ""


def _mixed(mix: str) -> Scheme:
    kind = BLOCK_TYPES[MIXES[mix]]
    return Scheme("gptq", kind.bits, kind.symmetric, kind.group_size, "gguf", mix=mix)


# The grids are those of the presets of the same names in compressed-tensors; NF4 is that of
# bitsandbytes, and mixes are those of llama.cpp.
SCHEMES = {
    "W4A16": Scheme("gptq", 4, symmetric=True, group_size=128),
    "W4A16_ASYM": Scheme("gptq", 4, symmetric=False, group_size=128),
    "W8A16": Scheme("gptq", 8, symmetric=True, group_size=128),
    "W8A8": Scheme("smoothquant", 8, True, -1, "compressed-tensors-int8"),
    "FP8_DYNAMIC": Scheme("gptq", 8, True, -1, "compressed-tensors-fp8", "e4m3"),
    "FP8": Scheme("gptq", 8, True, -1, "compressed-tensors-fp8-static", "e4m3", per_tensor=True),
    "NF4": Scheme("gptq", 4, True, 64, "bitsandbytes", "nf4"),
    "NF4_DOUBLE": Scheme("gptq", 4, True, 64, "bitsandbytes-double", "nf4"),
    "MXFP4A16": Scheme("gptq", 4, True, 32, "compressed-tensors-mxfp4", "e2m1"),
    "NVFP4A16": Scheme("gptq", 4, True, 16, "compressed-tensors-nvfp4", "e2m1"),
    "NVFP4": Scheme("gptq", 4, True, 16, "compressed-tensors-nvfp4-w4a4", "e2m1"),
} | {name: _mixed(name) for name in MIXES}


def choose(
    method: Method | None,
    scheme: str | None,
    format: str | None,  # noqa: A002
    options: Mapping[str, Any],
) -> tuple[str, dict[str, Any], str]:
    """Return the name of the quantizer, its options, and the checkpoint format.

    Args:
        method: a name, an object with options, a list of two of these (see ``chosen``), or None
            for the default.
        scheme: one of ``SCHEMES``, or None.
        format: the checkpoint format, or None for the default.
        options: of the quantizer, as given.

    Raises:
        TypeError: ``method`` is neither a name nor options; ``format`` is no name.
        ValueError: the scheme is unknown, or says other things than the rest.
    """
    if not (format is None or isinstance(format, str)):
        raise TypeError(
            f"format is {format!r}, expected the name of one; mlcalib.convert writes others from "
            "the checkpoint."
        )
    if scheme is None:
        name, given = chosen(_METHOD if method is None else method, options)
        return name, given, _FORMAT if format is None else format
    if scheme not in SCHEMES:
        raise ValueError(unknown("scheme", str(scheme), SCHEMES))
    found = SCHEMES[scheme]
    if isinstance(method, list | tuple) and all(isinstance(each, str) for each in method[-1:]):
        method, options = chosen(method, options)
    if not (method is None or isinstance(method, str)):
        raise ValueError(
            f"scheme is '{scheme}', and method is {method!r}, an object, which has all options; "
            f"give one of them, or the method by name: method='{found.method}', scheme='{scheme}'."
        )
    for option in ("bits", "symmetric", "numbers", "per_tensor", "mix"):
        own = getattr(found, option)
        if options.get(option, own) != own:
            raise ValueError(
                f"scheme is '{scheme}', which means {option}={own}, but {option}="
                f"{options[option]} was given; leave one of them out."
            )
    if found.format is not None and format not in (None, found.format):
        raise ValueError(
            f"scheme is '{scheme}', which only the format '{found.format}' holds, but format is "
            f"'{format}'; leave one of them out."
        )
    grid: dict[str, Any] = {
        "bits": found.bits,
        "group_size": found.group_size,
        "symmetric": found.symmetric,
    }
    if found.numbers != "integer":
        grid["numbers"] = found.numbers
    if found.per_tensor:
        grid["per_tensor"] = True
    if found.mix:
        grid = {"mix": found.mix}
    return method or found.method, grid | dict(options), format or found.format or _FORMAT
