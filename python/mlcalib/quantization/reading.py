"""How the calibration text of a pass comes to the blocks, and what the loss feels of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.fisher import Fisher
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.quantization.job import Job
from mlcalib.quantization.places import Places, gather_places
from mlcalib.quantization.prefixes import Prefix
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.source import Source
from mlcalib.quantization.text_check import check_text
from mlcalib.statistics import compares


@dataclass(frozen=True)
class Reading:
    """What it takes for a model to read the calibration text.

    Attributes:
        source: the model.
        text: the calibration text.
        jobs: those of the pass.
        prefixes: see ``run_pass``.
        places: block → the device where it runs.
        ranks: the processes of the run.
        stopwatch: gets the time that all jobs share.
        description: what the progress bar says; None shows none.
    """

    source: Source
    text: CalibrationSet
    jobs: Sequence[Job]
    prefixes: Sequence[Prefix]
    places: Mapping[str, torch.device]
    ranks: Ranks
    stopwatch: Stopwatch
    description: str | None

    def check(self) -> None:
        """Refuse text that the model cannot read.

        Raises:
            ValueError: see ``check_text``.
            NotImplementedError: images, for a model whose language model is calibrated by itself.
        """
        check_text(self.source.model, self.text)
        if self.text.inputs and self.source.adapter.runs:
            raise NotImplementedError(
                f"{type(self.source.model).__name__} does not run on text alone, so that its "
                "language model is calibrated by itself, which sees no images; leave out "
                "conversations with images."
            )

    def fisher(self, waiting: Mapping[str, Sequence[Job]], *, by_text: bool) -> Fisher | None:
        """Run text backward for jobs that ask for it, and return what gathers what the loss feels.

        Args:
            waiting: block → the jobs that wait for it.
            by_text: whether divergences are predicted from statistics of each language's text,
                where labels are the model's own.

        Raises:
            ValueError: jobs ask for different labels.
            NotImplementedError: the text has images.
        """
        jobs = {id(job): job for each in waiting.values() for job in each if job.fisher_tokens}
        if not jobs:
            return None
        labels = {job.fisher_labels for job in jobs.values()}
        if len(labels) > 1:
            raise ValueError(
                "Some quantizers of this pass take gradients of the loss on the model's own "
                "labels, others on the text's (fisher_labels); give all the same, or run them one "
                "by one."
            )
        if self.text.inputs:
            raise NotImplementedError(
                "The calibration text has images, and gradients are taken of text alone; leave out "
                "fisher_tokens, or conversations with images."
            )
        (own,) = labels
        fisher = Fisher(
            self.source,
            self.text,
            {key: (job.mixture or {}, job.fisher_tokens) for key, job in jobs.items()},
            self.places,
            labels=own,
            by_text=by_text and own == "model",
            ranks=self.ranks,
        )
        fisher.run(self.stopwatch, None if self.description is None else "gradients")
        return fisher

    def shared(self, kinds: Sequence[str], hidden: HiddenStates) -> Places:
        """Return statistics of weights that blocks share; see ``gather_places``."""
        return gather_places(
            self.source,
            self.text,
            self.prefixes,
            kinds,
            self.places,
            self.stopwatch,
            hidden=hidden,
            progress=self.description is not None,
        )

    def flow(self, first: int, hidden: HiddenStates) -> Flow:
        """Return the text in front of the first block, or where its hidden states are.

        Args:
            first: the first block that a job waits for.
            hidden: begin again if they are behind it, or not at the same block in all ranks.
        """
        positions = self.ranks.gathered(hidden.position)
        if max(positions) > first or len(set(positions)) > 1:
            hidden.restart()
        with self.source.embedding():
            return Flow(
                self.source.model,
                self.source.adapter,
                self.text,
                self.stopwatch,
                prefixes=self.prefixes,
                hidden=hidden,
                comparing=any(compares(job.kinds) for job in self.jobs),
                halves=any(job.halves for job in self.jobs),
                devices=self.places,
                ranks=self.ranks,
            )
