"""Generated texts: the one layout of files in which all commands write and read them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlcalib.common.files import write_json_lines


@dataclass(frozen=True)
class Source:
    """The model that wrote a text, as in a row of results.

    Attributes:
        model: the model as it was given.
        method: the name of its quantizer, ``float``, or ``unknown``.
        calibration: the name of its calibration set, or ``none``.
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
    """A text that a model is given.

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
        reference: the right answer; None if there is none, or it is not known.
    """

    output: str
    reference: str | None = None


def generation_row(generation: Generation, source: Source, **more: Any) -> dict[str, Any]:
    """Return a generation as a row of a file, in JSON types.

    The row has ``id``, ``language``, ``prompt`` and ``output``; ``reference`` if there is one; what
    else the writer knows (``more``, such as ``task`` or ``finished``); and ``model``, ``method``
    and ``calibration``.
    """
    row = asdict(generation)
    if generation.reference is None:
        del row["reference"]
    return row | more | asdict(source)


def write_generations(
    generations: Iterable[Generation], source: Source, path: str | Path, **more: Any
) -> None:
    """Write generations as JSON lines, either all of them or none; see ``generation_row``."""
    write_json_lines((generation_row(each, source, **more) for each in generations), path)
