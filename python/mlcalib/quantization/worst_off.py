"""Weights of languages that follow what quantization costs each of them."""

from collections.abc import Mapping

from mlcalib.quantization.prefixes import Mixture

POWER = 1.0
"""How much a language that loses more weighs more; docs/results/methods.md has what others do."""


def weighed(mixture: Mixture, lost: Mapping[str, float]) -> Mixture:
    """Return a mixture in which a language weighs more the more it has lost.

    With Lₗ what language l has lost so far, its text is multiplied by Lₗᵖ, p being ``POWER``: the
    gradient of Σ Lₗᵖ⁺¹, which is small only if none of the languages loses much.

    Args:
        mixture: text → weight.
        lost: language → nats per token, at least 0; empty, or 0 everywhere, changes nothing.

    Returns:
        As many weighted tokens as before.

    Raises:
        KeyError: a language of the mixture is not in ``lost``, which is not empty.
    """
    if not any(lost.values()):
        return mixture
    most = max(lost.values())
    moved = {
        prefix: weight * (lost[prefix.language] / most) ** POWER
        for prefix, weight in mixture.items()
    }
    before, after = (
        sum(weight * prefix.tokens for prefix, weight in each.items()) for each in (mixture, moved)
    )
    return {prefix: weight * before / after for prefix, weight in moved.items()}
