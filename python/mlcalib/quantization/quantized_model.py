"""A quantized model in memory, and the checkpoint it is saved as."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints import save_checkpoint
from mlcalib.checkpoints.card import model_card
from mlcalib.checkpoints.record import checkpoint_record, layer_record, summary
from mlcalib.formats import formats
from mlcalib.models import find_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A quantized model in memory.

    Attributes:
        model: a transformers model whose quantized linears hold dequantized weights: what a reader
            of the checkpoint computes with.
        tokenizer: its tokenizer.
        linears: name → codes and grid.
        losses: name → language → tr(D G Dᵀ) per token on that language's calibration text.
        recipe: what was asked for; JSON types.
        calibration: what it was calibrated on, or None.
        seconds: phase → time.
        expert_tokens: expert → language → calibration tokens that were routed to it.
        ranges: name → language → extremes of its input on that language's calibration text.
        scales: source of a scale group (a norm or a linear) → how its scales were found.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    linears: dict[str, QuantizedLinear]
    losses: dict[str, dict[str, float]]
    recipe: dict[str, Any]
    calibration: CalibrationSet | None
    seconds: dict[str, float]
    expert_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    scales: dict[str, dict[str, float]] = field(default_factory=dict)

    def save(self, out: str | Path, format: str = "compressed-tensors") -> None:  # noqa: A002
        """Write a Hugging Face folder with a model card; all of it or nothing.

        Args:
            out: a folder that does not exist.
            format: ``compressed-tensors``, ``gptq``, ``gptq-v2``, ``awq``, ``gguf`` or ``dense``.

        Raises:
            FileExistsError: ``out`` exists.
            ValueError: the format cannot hold these grids.
        """
        start = time.perf_counter()
        record = self.metadata(format)
        save_checkpoint(
            self.model,
            self.tokenizer,
            out,
            formats.get(format)(),
            self.linears,
            record,
            order=self.recipe["order"],
            saved_names=find_adapter(type(self.model).__name__).saved_names,
            card=model_card(record),
        )
        self.seconds["write"] = time.perf_counter() - start

    def metadata(self, format: str) -> dict[str, Any]:  # noqa: A002
        """Return what ``mlcalib.json`` records of the checkpoint."""
        layers = {
            name: layer_record(linear, self.losses[name], self.ranges.get(name, {}))
            for name, linear in self.linears.items()
        }
        return checkpoint_record(
            {**self.recipe, "format": format},
            self.calibration,
            layers,
            self.scales,
            self.expert_tokens,
            self.seconds,
        )

    def warnings(self) -> list[str]:
        """Return what to look at: one sentence each."""
        found: list[str] = self.metadata("")["warnings"]
        return found

    def summary(self) -> str:
        """Return a few lines on what was done and what to look at."""
        return summary(self.metadata(""))
