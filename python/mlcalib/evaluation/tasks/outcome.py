"""The results of benchmark tasks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlcalib.evaluation.tasks.text_metrics import Score
from mlcalib.results.generations import Generation, Source, write_generations
from mlcalib.results.rows import ItemScores, Results, Row, versions


@dataclass(frozen=True)
class Missing:
    """A cell without a number, and the reason.

    Attributes:
        task: the name of the task.
        language: the code of the language.
        metric: the metric; None for the whole task.
        reason: e.g. ``no task``, ``tokenizer not available``, ``not measured: …``.
        fillers: similar tasks that have the language.
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
    """The results of one model in tasks and languages.

    Tasks have the names of the rows: ``flores`` becomes ``flores_from_en`` and ``flores_to_en``,
    and ``language_confusion`` becomes ``…_monolingual`` and ``…_crosslingual``.

    Attributes:
        model: the name of the model in the rows.
        method: the name of its quantizer.
        calibration: the name of its calibration set.
        seed: the seed of the bootstrap that gives the errors of corpus scores.
        rows: the numbers.
        items: task → language → a number per item, in the order of the data: 0 (wrong) or 1
            (right); for translations and summaries the score of the single text (chrF++, ROUGE-L);
            None for an item without a score (a response that is too short to tell its language).
        generations: task → language → the texts that the model wrote, in the order of the data.
        missing: the cells without a number.
    """

    model: str
    method: str = "float"
    calibration: str = "none"
    seed: int = 0
    rows: list[Row] = field(default_factory=list)
    items: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    generations: dict[str, dict[str, list[Generation]]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)

    def add(
        self, task: str, language: str, scores: Sequence[Score], items: Sequence[float | None]
    ) -> None:
        """Add the scores of a task in a language."""
        computed = versions("lm_eval", "sacrebleu", "py3langid")
        self.rows += [
            Row(
                model=self.model,
                method=self.method,
                calibration=self.calibration,
                language=language,
                task=task,
                metric=each.metric,
                value=each.value,
                stderr=each.stderr,
                n=each.n,
                seed=self.seed if each.drawn else None,
                versions=computed,
            )
            for each in scores
        ]
        if items:
            self.items.setdefault(task, {})[language] = list(items)

    @property
    def results(self) -> Results:
        """The rows with their items and with the cells that have no number."""
        first = {(row.task, row.language): row.metric for row in reversed(self.rows)}
        of = (self.model, self.method, self.calibration)
        items = [
            ItemScores(*of, code, task, first[task, code], values)
            for task, languages in self.items.items()
            for code, values in languages.items()
            if (task, code) in first
        ]
        lacking = [
            ItemScores(*of, cell.language, cell.task, cell.metric, [], missing=str(cell))
            for cell in self.missing
        ]
        return Results(self.rows, items + lacking)

    def add_generations(
        self, task: str, language: str, texts: Iterable[tuple[str, str, str | None]]
    ) -> None:
        """Add generated texts (prompt, output, reference); their ids are places in the data."""
        self.generations.setdefault(task, {})[language] = [
            Generation(str(number), language, *text) for number, text in enumerate(texts)
        ]

    def write_generations(self, folder: str | Path) -> list[Path]:
        """Write the generated texts as JSONL files, one for each task, and return their paths.

        ``mlcalib.results.generations.generation_row`` describes a row, to which ``task`` is added.
        ``mlcalib judge`` and ``mlcalib annotate`` read these files.
        """
        source = Source(self.model, self.method, self.calibration)
        paths = []
        for task, languages in self.generations.items():
            paths.append(Path(folder) / f"{task}.jsonl")
            written = (each for texts in languages.values() for each in texts)
            write_generations(written, source, paths[-1], task=task)
        return paths
