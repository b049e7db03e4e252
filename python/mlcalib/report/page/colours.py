"""Colour scales: even steps in Oklab, told apart by colour-blind readers, numbers legible on them.

Oklab: Björn Ottosson, https://bottosson.github.io/posts/oklab/. A straight line in it is a scale
whose steps look even. Blue against orange is safe for all common kinds of colour blindness, and
lightness alone orders each arm, so that grey prints keep it.
"""

import math

Lab = tuple[float, float, float]

_NEUTRAL: Lab = (0.965, 0.0, 0.002)
_ORANGE: Lab = (0.56, 0.13, 0.105)
_BLUE: Lab = (0.50, -0.03, -0.135)
NOTHING = "#dddddd"
"""Where there is no value."""

CATEGORIES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080", "#8c6d31",
)  # fmt: skip
"""Okabe and Ito's, but for their yellow and black, which are lost on white and on dark pages."""


def diverging(share: float) -> str:
    """Return the colour of -1 (blue) over 0 (neutral) to 1 (orange); beyond, the ends."""
    share = min(1.0, max(-1.0, share))
    end = _ORANGE if share > 0 else _BLUE
    return _hex(_between(_NEUTRAL, end, abs(share)))


def sequential(share: float) -> str:
    """Return the colour of 0 (neutral) to 1 (blue); beyond, the ends."""
    return _hex(_between(_NEUTRAL, _BLUE, min(1.0, max(0.0, share))))


def faded(colour: str) -> str:
    """Return a colour drawn towards grey, for what is not significant."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(0.3 * part + 0.7 * 0xE6):02x}" for part in parts)


def ink(background: str) -> str:
    """Return black or white, whichever reads better on a colour (WCAG contrast)."""
    red, green, blue = (_linear(int(background[at : at + 2], 16) / 255) for at in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def ratio_share(ratio: float, doublings: float) -> float:
    """Place a ratio on a diverging scale that ends at so many doublings."""
    if ratio <= 0:
        return -1.0
    return math.log2(ratio) / doublings if math.isfinite(ratio) else 1.0


def _between(first: Lab, second: Lab, share: float) -> Lab:
    light, a, b = (one + (two - one) * share for one, two in zip(first, second, strict=True))
    return light, a, b


def _hex(lab: Lab) -> str:
    light, a, b = lab
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    brief = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * brief
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * brief
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * brief
    return "#" + "".join(f"{round(255 * _encoded(each)):02x}" for each in (red, green, blue))


def _encoded(linear: float) -> float:
    linear = min(1.0, max(0.0, linear))
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def _linear(encoded: float) -> float:
    return encoded / 12.92 if encoded <= 0.04045 else ((encoded + 0.055) / 1.055) ** 2.4
