"""Quantizers: they turn weights into codes. Each is one file, whose name is its name."""

from collections.abc import Mapping
from typing import Any

from mlcalib.common.registry import Registry
from mlcalib.quantizers.base import Quantizer, QuantizerOptions

__all__ = ["Quantizer", "chosen", "quantizers"]

quantizers: Registry[Quantizer] = Registry(
    "quantizer", package="mlcalib.quantizers", group="mlcalib.quantizers"
)


def chosen(
    method: str | QuantizerOptions, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the name of a quantizer and the options that were given, however they were.

    Args:
        method: a name, or the options of a quantizer as an object.
        options: by keyword; none beside an object.

    Raises:
        TypeError: ``method`` is neither.
        ValueError: there are options beside an object, or no quantizer takes the object.
    """
    if isinstance(method, str):
        return method, dict(options)
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
