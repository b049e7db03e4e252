"""Quantizers: they turn weights into codes. Each is one file, whose name is its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlcalib.common.registry import Registry
from mlcalib.quantizers.base import Quantizer, QuantizerOptions

__all__ = ["Method", "Quantizer", "chosen", "quantizers"]

quantizers: Registry[Quantizer] = Registry(
    "quantizer", package="mlcalib.quantizers", group="mlcalib.quantizers"
)


Method = str | QuantizerOptions | Sequence[str | QuantizerOptions]
"""A quantizer: its name, an object with its options, or two in a list: what scales, what solves."""


def chosen(method: Method, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a quantizer and the options that were given, however they were.

    Args:
        method: a name, or the options of a quantizer as an object. Or a list of two of these: the
            first scales the channels of inputs, and the second solves.
        options: by keyword; none beside an object.

    Raises:
        TypeError: ``method`` is neither.
        ValueError: there are options beside an object, no quantizer takes the object, or a list is
            no composition.
    """
    if isinstance(method, str):
        return method, dict(options)
    if isinstance(method, list | tuple):
        return _composed(method, options)
    if not isinstance(method, QuantizerOptions):
        given = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        names = ", ".join(quantizers.names())
        raise TypeError(
            f"method is {given}, expected the name of a quantizer ({names}), or an object with its "
            "options, such as mlcalib.GPTQ(bits=4)."
        )
    kind = type(method)
    if options:
        raise ValueError(
            f"method is an object, {kind.__name__}(...), and {', '.join(options)} came beside it; "
            f"write {kind.__name__}({', '.join(f'{name}=...' for name in options)})."
        )
    if not kind.method or quantizers.get(kind.method).Options is not kind:
        raise ValueError(
            f"method is an object of {kind.__module__}.{kind.__qualname__}, but the quantizer "
            f"'{kind.method}' does not take it: its class needs the attribute "
            "method = 'NAME', and the quantizer NAME needs Options = this class."
        )
    return kind.method, method.model_dump(exclude_unset=True)


def _composed(
    methods: Sequence[str | QuantizerOptions], options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    if len(methods) != 2:
        raise ValueError(
            f"method is a list of {len(methods)}, expected two: what scales and then what solves, "
            'such as ["awq", "gptq"] or [mlcalib.SmoothQuant(), mlcalib.GPTQ(bits=8)].'
        )
    scales, searched = chosen(methods[0], {})
    solver, given = chosen(methods[1], options)
    able = [each for each in quantizers.names() if "scales" in _options_of(each)]
    if solver not in able:
        raise ValueError(
            f"method is [{scales}, {solver}], but {solver} does not solve what another quantizer "
            f"has scaled; expected {' or '.join(able)} at the end."
        )
    if given.get("scales") is not None:
        raise ValueError(
            f"method is [{scales}, {solver}], and scales= was given too; leave one of them out."
        )
    return solver, {**given, "scales": {"method": scales, **searched} if searched else scales}


def _options_of(name: str) -> Mapping[str, Any]:
    return quantizers.get(name).Options.model_fields
