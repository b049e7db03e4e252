"""What models write: one layout of files, whichever command makes them and whichever reads them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlcalib.common.files import write_json_lines


@dataclass(frozen=True)
class Source:
    """Where texts come from, as in a row of results.

    Attributes:
        model: the model as it was given.
        method: quantizer, ``float``, or ``unknown``.
        calibration: name of the calibration set, or ``none``.
    """

    model: str
    method: str = "unknown"
    calibration: str = "none"

    def __str__(self) -> str:
        calibration = "" if self.calibration == "none" else f" {self.calibration}"
        how = "" if self.method == "unknown" else f" ({self.method}{calibration})"
        return self.model + how


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        id: unique within the language.
        language: code in ``mlcalib.languages``.
        prompt: the text.
    """

    id: str
    language: str
    prompt: str


@dataclass(frozen=True)
class Generation(Prompt):
    """A prompt and what one model answered.

    Attributes:
        output: the answer.
        reference: what is right; None where nothing is, or it is not known.
    """

    output: str
    reference: str | None = None


def generation_row(generation: Generation, source: Source, **more: Any) -> dict[str, Any]:
    """Return the row of a generation in a file; JSON types.

    It has ``id``, ``language``, ``prompt`` and ``output``, ``reference`` where there is one, what
    the writer knows besides (``more``: ``task``, ``finished``), and ``model``, ``method`` and
    ``calibration``.
    """
    row = asdict(generation)
    if generation.reference is None:
        del row["reference"]
    return row | more | asdict(source)


def write_generations(
    generations: Iterable[Generation], source: Source, path: str | Path, **more: Any
) -> None:
    """Write generations as JSON lines, all of them or nothing; see ``generation_row``."""
    write_json_lines((generation_row(each, source, **more) for each in generations), path)
