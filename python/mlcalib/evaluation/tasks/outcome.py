"""What running tasks gives."""

from dataclasses import dataclass, field

from mlcalib.results import Row


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    Attributes:
        prompt: what it read.
        output: what it wrote.
        reference: what is right; None where nothing is.
    """

    prompt: str
    output: str
    reference: str | None = None


@dataclass(frozen=True)
class Missing:
    """A cell that has no number, and why.

    Attributes:
        task: which.
        language: code.
        metric: which; None for the whole task.
        reason: e.g. ``no task``, ``tokenizer not available``, ``not measured: …``.
        fillers: tasks that ask for something alike and have the language.
    """

    task: str
    language: str
    metric: str | None
    reason: str
    fillers: tuple[str, ...] = ()

    def __str__(self) -> str:
        offer = f" (try {' or '.join(self.fillers)})" if self.fillers else ""
        return f"{self.reason}{offer}"


@dataclass
class TaskResults:
    """Results of tasks in languages, of one model.

    Tasks are named as in the rows: ``flores`` gives ``flores_from_en`` and ``flores_to_en``,
    ``language_confusion`` its ``…_monolingual`` and ``…_crosslingual``.

    Attributes:
        rows: the numbers.
        items: task → language → a number per item, in the order of the data: 0 or 1 for wrong and
            right; for translations and summaries the score of that text alone (chrF++, ROUGE-L);
            None for an item that says nothing (a response too short to tell its language).
        generations: task → language → what the model wrote, in the order of the data.
        missing: the cells without a number.
    """

    rows: list[Row] = field(default_factory=list)
    items: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    generations: dict[str, dict[str, list[Generation]]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
