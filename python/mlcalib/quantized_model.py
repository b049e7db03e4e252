"""A quantized model in memory, and the checkpoint it is saved as."""

import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mlcalib import _core
from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.formats import formats, save_checkpoint
from mlcalib.model_card import model_card
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
        calibration = self.calibration
        return {
            "mlcalib": _core.build_info()["version"],
            "versions": {
                "torch": torch.__version__,
                **{name: version(name) for name in ("transformers", "compressed-tensors")},
            },
            "isa": _core.isa(),
            "threads": torch.get_num_threads(),
            "recipe": {**self.recipe, "format": format},
            "calibration": None if calibration is None else calibration.describe(),
            "layers": {
                name: {
                    "loss_per_token": self.losses[name],
                    "input_range": self.ranges.get(name, {}),
                    "damp": linear.damp,
                    "dead_channels": linear.dead_channels,
                }
                for name, linear in self.linears.items()
            },
            "scales": self.scales,
            "expert_tokens": self.expert_tokens,
            "warnings": self.warnings(),
            "seconds": {phase: round(spent, 3) for phase, spent in self.seconds.items()},
        }

    def warnings(self) -> list[str]:
        """Return what to look at: one sentence each."""
        found = []
        for code, report in (self.calibration.report if self.calibration else {}).items():
            if report.got < report.asked:
                found.append(f"{code} has {report.got:,} of {report.asked:,} tokens asked for")
        asked = self.recipe["options"].get("damp")
        raised = [name for name, linear in self.linears.items() if linear.damp != (asked or 0)]
        if raised:
            worst = max(raised, key=lambda name: self.linears[name].damp)
            found.append(
                f"damping raised above {asked} in {len(raised)} linears, most in {worst}: "
                f"{self.linears[worst].damp:g}"
            )
        dead = {name: linear.dead_channels for name, linear in self.linears.items()}
        if any(dead.values()):
            worst = max(dead, key=lambda name: dead[name])
            found.append(
                f"channels without any activation (rounded): {sum(dead.values())} in "
                f"{sum(map(bool, dead.values()))} linears, most in {worst}: {dead[worst]}"
            )
        return found + self._unseen_experts()

    def summary(self) -> str:
        """Return a few lines on what was done and what to look at."""
        lines = [f"{len(self.linears)} linears quantized with {self.recipe['method']}"]
        counts = {True: 0, False: 0}  # skipped, changed
        for override in self.recipe["overrides"]:
            counts[override["options"] is None] += len(override["linears"])
        if any(counts.values()):
            lines.append(
                f"{counts[True]} linears left in floating point, {counts[False]} with options of "
                "their own"
            )
        lines += self.warnings()
        spent = ", ".join(f"{phase} {time:.1f} s" for phase, time in self.seconds.items())
        lines.append(f"time: {spent}")
        return "\n".join(lines)

    def _unseen_experts(self) -> list[str]:
        """Name the experts that saw no token, and count those that a language never reached."""
        tokens = self.expert_tokens
        unseen: dict[str, list[str]] = {}
        for name, by_language in tokens.items():
            if not any(by_language.values()):
                experts, _, number = name.rpartition(".")
                unseen.setdefault(experts, []).append(number)
        lines = []
        if unseen:
            named = "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in unseen.items())
            count = sum(map(len, unseen.values()))
            lines.append(f"experts without any token (rounded): {count} of {len(tokens)}: {named}")
        languages = next(iter(tokens.values()), {})
        missed = {code: sum(not seen[code] for seen in tokens.values()) for code in languages}
        if any(missed.values()):
            counts = ", ".join(f"{code} {count}" for code, count in missed.items() if count)
            lines.append(f"experts that saw no token of a language, of {len(tokens)}: {counts}")
        return lines
