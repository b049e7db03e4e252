"""What a report is made of, before it is HTML or Markdown.

Texts may hold `code`, **strong** and ⟨names⟩; a name is set apart from the direction of the text
around it, so that one in Arabic or Hebrew letters does not turn it over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

MISSING = "not measured"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        note: a second, smaller line.
        colour: of the background, as ``#rrggbb``.
        title: shown where the pointer rests.
        best: marked as the best of its row.
        grey: not significant.
        head: heads its row.
        plain: text instead of a number, set to the left.
    """

    text: str
    note: str = ""
    colour: str | None = None
    title: str = ""
    best: bool = False
    grey: bool = False
    head: bool = False
    plain: bool = False


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Paragraph:
    """Text; ``lead`` is the answer, ``warning`` is what the reader must know, ``note`` is small."""

    text: str
    kind: Literal["text", "lead", "warning", "note"] = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells; strings are plain cells, the first of a row heads it.

    Attributes:
        caption: what it shows.
        header: of the columns.
        rows: of the body.
        foot: rows set apart below.
        heat: cells are wide enough to be coloured.
    """

    caption: str
    header: Row
    rows: Sequence[Row]
    foot: Sequence[Row] = ()
    heat: bool = False


@dataclass(frozen=True)
class Map:
    """A grid too fine for numbers: colours, and the numbers where the pointer rests.

    Attributes:
        title: what it shows.
        rows: labels down.
        columns: labels across.
        colours: [rows][columns], ``#rrggbb``.
        titles: likewise, what each says.
        axis: what the columns are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    colours: Sequence[Sequence[str]]
    titles: Sequence[Sequence[str]]
    axis: str = "block"


@dataclass(frozen=True)
class Scale:
    """What colours mean: (colour, text) from the least to the greatest."""

    steps: Sequence[tuple[str, str]]
    title: str


@dataclass(frozen=True)
class Plot:
    """A figure that is also a file, by its name without ending."""

    name: str
    caption: str


@dataclass(frozen=True)
class Beside:
    """Blocks beside each other where there is room."""

    blocks: "Sequence[Block]"


@dataclass(frozen=True)
class Details:
    """What unfolds."""

    summary: str
    blocks: "Sequence[Block]"


@dataclass
class Section:
    """A part of the page.

    Attributes:
        anchor: its name in addresses.
        title: its heading.
        blocks: what it holds.
        level: of its heading, 2 or 3.
    """

    anchor: str
    title: str
    blocks: "list[Block]" = field(default_factory=list)
    level: int = 2


Block = Paragraph | Table | Map | Scale | Plot | Beside | Details | Section
