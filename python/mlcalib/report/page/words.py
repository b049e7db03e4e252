"""Numbers and names as people read them."""

from mlcalib.languages import language, languages, script_name
from mlcalib.report.page.document import MISSING, Cell
from mlcalib.results.significance import Difference


def signed(value: float, digits: int = 3) -> str:
    """Return ``+0.123``, with a minus sign as long as the plus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def between(difference: Difference | None, digits: int = 3) -> str:
    """Return ``+0.123 [0.101, 0.145]``."""
    if difference is None:
        return MISSING
    return f"{signed(difference.value, digits)} {bounds(difference, digits)}"


def bounds(difference: Difference, digits: int = 3) -> str:
    """Return ``[0.101, 0.145]``."""
    if difference.low is None or difference.high is None:
        return "[no interval]"
    ends = f"[{difference.low:.{digits}f}, {difference.high:.{digits}f}]"
    return ends.replace("-", "\u2212")


def probability(p: float | None) -> str:
    """Return ``p = 0.012``."""
    if p is None:
        return "no p"
    return f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"


def full_name(code: str) -> str:
    """Return ``Swahili (Latin)``; the code itself where the catalogue does not know it."""
    known = language(code) if code in _codes() else None
    if known is None:
        return code
    script = script_name(known.script).replace(" (", ", ").rstrip(")")  # Han, simplified
    return f"{known.name} ({script})" if script else known.name


def spoken(code: str) -> str:
    """Return the language's name alone, for running text, kept apart likewise."""
    return f"⟨{language(code).name if code in _codes() else code}⟩"


def hint(code: str) -> str:
    """Return ``ar, written from right to left``."""
    known = language(code) if code in _codes() else None
    turned = ", written from right to left" if known is not None and known.right_to_left else ""
    return f"{code}{turned}"


def head(code: str, note: str = "") -> Cell:
    """Return the cell that heads the row of a language."""
    return Cell(full_name(code), f"{code}, {note}" if note else code, title=hint(code), head=True)


def named(code: str) -> str:
    """Return the full name for running text, kept apart from the direction around it."""
    return f"⟨{full_name(code)}⟩"


def listed(names: list[str], word: str = "and") -> str:
    """Return ``a, b and c``."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def seconds(value: float | None) -> str:
    """Return ``4 min 12 s``."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(value: int | None) -> str:
    """Return ``1.86 GiB``."""
    if value is None:
        return MISSING
    unit, name = (2**30, "GiB") if value >= 2**30 else (2**20, "MiB")
    return f"{value / unit:.2f} {name}"


def number(value: float | None, form: str = ",") -> str:
    """Return a number in a format, or that it was not measured."""
    return MISSING if value is None else format(value, form).replace("-", "\u2212")


def _codes() -> set[str]:
    return {entry.code for entry in languages()}
