"""How much is done for quality, by name: what was measured best for its cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcalib.common.registry import unknown
from mlcalib.quantization.block_steps import Propagate


@dataclass(frozen=True)
class Quality:
    """What a name stands for.

    Attributes:
        propagate: see ``mlcalib.quantize``.
        options: of ``gptq``.
    """

    propagate: Propagate
    options: Mapping[str, Any]


QUALITIES = {
    "fast": Quality("float", {"sweeps": 3}),
    "balanced": Quality("quantized", {"sweeps": 3, "correction": "auto"}),
    "best": Quality("quantized", {"sweeps": 3, "correction": "auto", "fisher_tokens": 10240}),
}


def with_quality(
    quality: str | None, method: str, propagate: Propagate | None, options: Mapping[str, Any]
) -> tuple[Propagate, dict[str, Any]]:
    """Return the propagation and the options of a quantizer.

    Args:
        quality: one of ``QUALITIES``, or None for what the rest says.
        method: name of the quantizer.
        propagate: None for what ``quality`` says, or else ``quantized``.
        options: of the quantizer, as given.

    Raises:
        ValueError: the quality is unknown, of another method, or says other things than the rest.
    """
    if quality is None:
        return propagate or "quantized", dict(options)
    if quality not in QUALITIES:
        raise ValueError(unknown("quality", str(quality), QUALITIES))
    if method != "gptq":
        raise ValueError(
            f"quality is '{quality}', which is a choice of gptq's options, but method is "
            f"'{method}'; leave one of them out."
        )
    found = QUALITIES[quality]
    means = {"propagate": found.propagate, **found.options}
    given = {**options, **({} if propagate is None else {"propagate": propagate})}
    for name, own in means.items():
        if given.get(name, own) != own:
            raise ValueError(
                f"quality is '{quality}', which means {name}={own}, but {name}={given[name]} was "
                "given; leave one of them out."
            )
    return found.propagate, {**found.options, **options}
