"""Measures evaluation text in each layer, and compares it with the calibration text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.checked import as_type
from mlcalib.common.files import atomic_file
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_read import read_json
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.block_record import input_ranges
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.quantization.prefixes import BlockStatistics, Mixture
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.solve import References, losses_per_token, references
from mlcalib.quantization.source import Source

_WORST = 8  # channels that are named


@dataclass(frozen=True)
class _Measured:
    """What is kept of a block."""

    power: dict[str, Any]
    ranges: dict[str, Any]
    heldout_ranges: dict[str, Any]
    outside: dict[str, dict[str, Any]]


class LayerMeasures:
    """Runs evaluation text beside the calibration text; see ``block_pass.Measure``.

    For each linear and language it measures the power of the output, the extremes of the input on
    calibration and on evaluation text, and for each calibration setting the share of the evaluation
    activations that lie outside the range of the setting's text in their channel.
    """

    kinds = ("gram", "range")
    """See ``Measure``."""

    def __init__(
        self,
        source: Source,
        text: CalibrationSet,
        mixtures: Mapping[str, Mixture],
        folder: Path,
        hidden: HiddenStates | None,
        stopwatch: Stopwatch,
        device: str,
        ranks: Ranks,
    ) -> None:
        """Make the measure of one model.

        Args:
            source: the model.
            text: the evaluation text.
            mixtures: setting → prefixes of the calibration text.
            folder: a file for each block is written into it.
            hidden: where hidden states are kept; by default in memory.
            stopwatch: the time is added to it.
            device: where blocks run, as for ``run_pass``.
            ranks: the processes of the run, which share the text; rank 0 writes.
        """
        self._source, self._adapter, self.text = source, source.adapter, text
        self._mixtures = mixtures
        self._folder = folder
        self._stopwatch, self._device = stopwatch, device
        self._ranks = ranks
        done: list[str] = []
        if ranks.writes:
            folder.mkdir(parents=True, exist_ok=True)
            names = [name for name, _ in source.adapter.named_blocks(source.model)]
            done = [name for name in names if self._file(name).is_file()]
        self._done = set(ranks.of_first(done))
        self._hidden = hidden or HiddenStates()
        self._flow: Flow | None = None
        self._record: dict[str, Any] = {}

    @property
    def position(self) -> int:
        """See ``Measure``."""
        return self._hidden.position

    def start(self, index: int) -> None:
        """See ``Measure``."""
        positions = self._ranks.gathered(self._hidden.position)
        if max(positions) > index or len(set(positions)) > 1:
            self._hidden.restart()
        with self._stopwatch.timed("heldout"), self._source.embedding():
            self._flow = Flow(
                self._source.model,
                self._adapter,
                self.text,
                Stopwatch(),
                hidden=self._hidden,
                devices=self._source.places(self._device),
                ranks=self._ranks,
            )

    def has(self, block_name: str) -> bool:
        """See ``Measure``."""
        return block_name in self._done

    def skip(self, block_name: str, block: nn.Module) -> None:
        """See ``Measure``."""
        with self._stopwatch.timed("heldout"):
            self._moving().advance(block_name, block)
            self._moving().turn()

    def begin(
        self, block_name: str, block: nn.Module, statistics: BlockStatistics
    ) -> References[str]:
        """See ``Measure``."""
        with self._stopwatch.timed("heldout"):
            bounds = {name: _bounds(statistics, mix) for name, mix in self._mixtures.items()}
            outside = _Outside(bounds)
            held = self._moving().collect(
                block_name,
                block,
                ("gram", "range"),
                skipped=(),
                advance=True,
                observe=outside.see,
            )
            measured = references(held)
            self._record = {
                "power": self._power(block_name, block, measured),
                "ranges": input_ranges(self._adapter, block_name, block, statistics),
                "heldout_ranges": input_ranges(self._adapter, block_name, block, held),
                "outside": self._by_linear(block_name, block, outside.shares(self._ranks)),
            }
        return measured

    def end(self, block_name: str) -> None:
        """See ``Measure``."""
        if self._ranks.writes:
            with atomic_file(self._file(block_name)) as file:
                json.dump(self._record, file, allow_nan=False)
        self._done.add(block_name)
        self._moving().turn()

    def merged(self, blocks: list[str]) -> dict[str, Any]:
        """Return what was measured in all blocks, as in ``layers.json``."""
        found: dict[str, Any] = {"power": {}, "ranges": {}, "heldout_ranges": {}, "outside": {}}
        for name in blocks:
            try:
                record = as_type(read_json(self._file(name)), _Measured)
            except ValueError as error:
                raise ValueError(
                    f"{self._file(name)} is damaged ({error}); remove it, and run the study again"
                ) from error
            found["power"] |= record.power
            found["ranges"] |= record.ranges
            found["heldout_ranges"] |= record.heldout_ranges
            for setting, by_linear in record.outside.items():
                found["outside"].setdefault(setting, {}).update(by_linear)
        return found

    def _moving(self) -> Flow:
        if self._flow is None:
            raise RuntimeError("start comes first")
        return self._flow

    def _power(
        self, block_name: str, block: nn.Module, measured: References[str]
    ) -> dict[str, dict[str, float]]:
        """Return linear → language → tr(W G Wᵀ) per token."""
        return {
            f"{block_name}.{member}": losses_per_token(
                self._adapter.linear(block, member).weight.detach().float(), measured[name]
            )
            for name, members in self._adapter.linears_of(block).items()
            for member in members
        }

    def _by_linear(
        self, block_name: str, block: nn.Module, shares: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        linears = self._adapter.linears_of(block)
        return {
            setting: {
                f"{block_name}.{member}": found
                for name, found in by_input.items()
                for member in linears[name]
            }
            for setting, by_input in shares.items()
        }

    def _file(self, block_name: str) -> Path:
        return self._folder / f"{block_name}.json"


class _Outside:
    """Counts activations outside of bounds."""

    def __init__(self, bounds: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]) -> None:
        """Take setting → input → (low, high), [channels] each."""
        self._bounds = bounds
        self._counts: dict[tuple[str, str, str], Tensor] = {}  # setting, input, language
        self._tokens: dict[tuple[str, str], int] = {}  # input, language

    def see(self, name: str, language: str, x: Tensor) -> None:
        """Count x [tokens, channels]; see ``propagation.Observe``."""
        self._tokens[name, language] = self._tokens.get((name, language), 0) + len(x)
        x = x.float()
        for setting, bounds in self._bounds.items():
            if name in bounds:
                low, high = bounds[name]
                found = (x.clamp(low, high) != x).sum(0)
                key = setting, name, language
                self._counts[key] = self._counts.get(key, torch.zeros_like(found)) + found

    def _add(self, ranks: Ranks) -> None:
        """Take in what other ranks have counted."""
        if ranks.alone:
            return
        every = ranks.gathered(
            ({key: counts.cpu() for key, counts in self._counts.items()}, self._tokens)
        )
        self._counts, self._tokens = {}, {}
        for of_rank, tokens in every:
            for key, counts in of_rank.items():
                self._counts[key] = self._counts.get(key, 0) + counts
            for at, count in tokens.items():
                self._tokens[at] = self._tokens.get(at, 0) + count

    def shares(self, ranks: Ranks) -> dict[str, dict[str, Any]]:
        """Return setting → input → language → share, and those of the worst channels; collective.

        They are of what all ranks have seen.
        """
        self._add(ranks)
        found: dict[str, dict[str, Any]] = {setting: {} for setting in self._bounds}
        for (setting, name, language), counts in self._counts.items():
            tokens = self._tokens[name, language]
            worst = torch.topk(counts, min(_WORST, len(counts)))
            pairs = zip(worst.indices.tolist(), worst.values.tolist(), strict=True)
            found[setting].setdefault(name, {})[language] = {
                "share": int(counts.sum()) / (tokens * len(counts)),
                "channels": {str(channel): count / tokens for channel, count in pairs if count},
            }
        return found


def _bounds(statistics: BlockStatistics, mixture: Mixture) -> dict[str, tuple[Tensor, Tensor]]:
    """Return input → the least and the largest value of each channel on a setting's text."""
    found = {}
    for name, by_prefix in statistics.items():
        states = [by_prefix[prefix].view("range") for prefix in mixture if by_prefix[prefix].tokens]
        if states:
            low = torch.stack([state["low"] for state in states]).amin(0)
            high = torch.stack([state["high"] for state in states]).amax(0)
            found[name] = low, high
    return found
