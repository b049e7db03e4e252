"""llama.cpp's importance matrix from per-language statistics.

What ``llama-imatrix`` gathers from one text, here from a calibration set: of each linear's input
the sum and the sum of squares of each channel, and the number of tokens. Languages are kept apart,
so that any mixture can be written without another pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints.imatrix_file import Importance, ImportanceFile, Layout
from mlcalib.common.optional import optional
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.formats import gguf_names
from mlcalib.models.device import choose_device
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.job import BlockView, Observation
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.solve import longest
from mlcalib.statistics import StatisticSet, mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """What importance matrices of all mixtures are made of.

    Attributes:
        statistics: tensor of a GGUF file → for each of its experts (or once), language → moments.
        calibration: the text they come from.
    """

    statistics: dict[str, list[dict[str, StatisticSet]]]
    calibration: CalibrationSet

    def mix(self, weights: Mapping[str, float] | None = None) -> dict[str, Importance]:
        """Return the entries of a mixture, by tensor.

        Args:
            weights: language → what each of its tokens counts; None counts every token once.

        Raises:
            ValueError: a language that was not gathered, or a weight that is not positive.
        """
        languages = list(self.calibration.ids)
        weights = dict.fromkeys(languages, 1.0) if weights is None else weights
        if (strange := set(weights) - set(languages)) or not all(
            0 < weight < float("inf") for weight in weights.values()
        ):
            raise ValueError(
                f"weights are {dict(weights)}; expected positive numbers for some of "
                f"{', '.join(languages)}" + (f" (not {', '.join(strange)})" if strange else "")
            )
        return {
            tensor: _importance([mix(each, weights) for each in experts])
            for tensor, experts in self.statistics.items()
        }

    def save(
        self,
        path: str | Path,
        weights: Mapping[str, float] | None = None,
        *,
        layout: Layout | None = None,
    ) -> None:
        """Write an importance matrix for ``llama-quantize --imatrix``; whole or not at all.

        Args:
            path: the file.
            weights: as for ``mix``.
            layout: ``gguf``, or ``dat`` (llama.cpp before July 2025); None takes ``dat`` for a name
                that ends in .dat and ``gguf`` for others.

        Raises:
            ValueError: as ``mix``; an unknown layout.
            OSError: the file cannot be written.
        """
        entries = self.mix(weights)
        seen = int(max(entry.counts.max() for entry in entries.values()))
        size = self.calibration.seq_len
        dataset = f"{self.calibration.corpus}:{self.calibration.set_name}"
        ImportanceFile(entries, (dataset,), -(-seen // size), size).save(path, layout=layout)


def imatrix(
    model: "str | Path | PreTrainedModel",
    calibration: CalibrationSet,
    *,
    dtype: str = "auto",
    device: str = "auto",
    memory: float | None = None,
    progress: bool = True,
) -> ImportanceMatrix:
    """Gather the importance of every linear of a model's blocks, in one pass for all languages.

    A model in safetensors files is streamed: one block at a time is in memory.

    Args:
        model: a folder, a hub name, a GGUF file, or a transformers model, which is not changed.
        calibration: the text.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; of a model that is loaded here.
        device: where blocks run: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU, where there is
            one and mlcalib was built for it).
        memory: GB that the run may take there; see ``mlcalib.quantize``.
        progress: show a bar.

    Raises:
        ValueError: NaN or Inf in activations; a damaged checkpoint.
        NotImplementedError: an architecture without an adapter.
        ImportError: the package gguf is missing.
    """
    optional("gguf", "gguf", "an importance matrix")
    choose_device(device)
    source = open_source(model, dtype).ready()
    name = type(source.model).__name__
    names = gguf_names(source.model.config, name, source.adapter.saved_names)
    moments = _Moments(names)
    run_pass(
        source,
        [moments],
        calibration,
        propagate="float",
        stopwatch=Stopwatch(),
        description="imatrix" if progress else None,
        device=device,
        memory=memory,
    )
    return ImportanceMatrix(moments.found, calibration)


class _Moments(Observation):
    """Keeps the moments of each linear's input, by the name of its tensor in a GGUF file."""

    kinds = ("moments",)

    def __init__(self, tensor_name: Callable[[str], str]) -> None:
        """Take what turns a linear's name into its tensor's."""
        super().__init__()
        self._tensor_name = tensor_name
        self.found: dict[str, list[dict[str, StatisticSet]]] = {}

    def see(self, block: BlockView) -> None:
        """See ``Observation``."""
        for key, members in block.adapter.linears_of(block.module).items():
            for member in members:
                tensor = self._tensor_name(f"{block.name}.{member}")
                self.found.setdefault(tensor, []).append(longest(block.statistics[key]))


def _importance(mixed: list[StatisticSet]) -> Importance:
    """Return sums as if the number of tokens, which llama.cpp rounds, were whole."""
    sums, squares, counts = [], [], []
    for each in mixed:
        # A few tokens of small weight are still some.
        count = max(round(each.tokens), 1) if each.tokens > 0 else 0
        factor = count / each.tokens if count else 0.0
        moments = each.state("moments")
        sums.append((moments["sum"] * factor).float().cpu().numpy())
        squares.append((moments["square"] * factor).float().cpu().numpy())
        counts.append(count)
    return Importance(np.stack(sums), np.stack(squares), np.array(counts, np.float32))
