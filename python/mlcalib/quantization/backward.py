"""Gradients of the float model's loss at the outputs of its blocks, a block at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_with_path

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.progress import progress_bar
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.arguments import Arguments
from mlcalib.models.device import CPU, moved
from mlcalib.models.running import call_block, embed, first_output, logits_of
from mlcalib.quantization.read_ahead import Blocks
from mlcalib.quantization.source import Source
from mlcalib.quantizers.base import Labels

if TYPE_CHECKING:
    from mlcalib.common.progress import Bar

_HEAD = ""  # what comes after the last block

Place = tuple[str, int]
"""Language, and number of a sequence of its text."""


@dataclass(frozen=True)
class Passed:
    """What one block leaves to the next of a sequence, or the gradients there.

    Attributes:
        state: hidden states, [1, seq_len, hidden size].
        handed: what else blocks made for later ones: argument → tensors in lists and dicts.
    """

    state: Tensor
    handed: dict[Any, Any]

    def to(self, device: torch.device) -> "Passed":
        """Return it on a device."""
        return Passed(self.state.to(device), moved(self.handed, device))

    def tensors(self) -> dict[str, Tensor]:
        """Return where it stands → each tensor that can have a gradient.

        Raises:
            NotImplementedError: an object that hides tensors.
        """
        leaves, _ = tree_flatten_with_path((self.state, self.handed))
        for _, each in leaves:
            if not isinstance(each, Tensor | int | float | str | None):
                raise NotImplementedError(
                    f"blocks hand over a {type(each).__name__}, and gradients are not taken "
                    "through that; leave out fisher_tokens."
                )
        return {
            keystr(path): each
            for path, each in leaves
            if isinstance(each, Tensor) and each.is_floating_point()
        }

    def replaced(self, tensors: Mapping[str, Tensor]) -> "Passed":
        """Return the same with other tensors, by where they stand."""
        both = (self.state, self.handed)
        state, handed = tree_map_with_path(lambda path, x: tensors.get(keystr(path), x), both)
        return Passed(state, handed)


class LossGradients:
    """What each block reads, and the gradient of the loss at what it returns.

    The loss, summed over tokens, is that of labels drawn from the model's own predictions: its
    gradients' products are the Fisher information of the model, whatever the text says (Kunstner et
    al., arXiv 1905.12558). Or it is that of the text's next tokens. What blocks read and the
    gradients, two tensors of the size of a hidden state for each block and sequence, are kept in
    the host's memory.

    Three runs of each sequence make them: forward, forward again for the graph of a block, and
    backward; no gradient of a weight is made.
    """

    def __init__(
        self,
        source: Source,
        text: CalibrationSet,
        sequences: Mapping[str, range],
        devices: Mapping[str, torch.device],
        labels: Labels = "model",
    ) -> None:
        """Take what is to run; nothing does yet.

        Args:
            source: the float model.
            text: the calibration text.
            sequences: language → those of its sequences that run.
            devices: block → where it runs.
            labels: what is to be predicted.
        """
        adapter = source.adapter
        self._source, self._text, self._own, self._devices = source, text, sequences, devices
        self._labels = labels
        self._names = [name for name, _ in adapter.named_blocks(source.model)]
        self._arguments = Arguments(adapter, self._device)
        self._read: dict[tuple[str, Place], Passed] = {}
        self._gradients: dict[tuple[str, Place], Passed] = {}

    def run(self, stopwatch: Stopwatch, description: str | None) -> None:
        """Make them all.

        Args:
            stopwatch: gets the time.
            description: what the progress bar says; None shows none.

        Raises:
            ValueError: the loss is NaN or Inf; names the language.
        """
        steps = 2 * len(self._names)  # the first block runs forward only; the loss is one
        with (
            stopwatch.timed("gradients"),
            progress_bar(
                total=steps, desc=description, unit="block", disable=description is None
            ) as bar,
        ):
            self._forward(bar)
            self._from_loss()
            bar.update()
            self._backward(bar)

    def backward(self, block_name: str, block: nn.Module, sequence: Place) -> "Passed":
        """Run a block forward and backward; return the gradient at what it reads.

        Raises:
            NotImplementedError: blocks hand over what gradients cannot be taken through.
        """
        device, key = self._device(block_name), (block_name, sequence)
        read, gradient = self._read[key].to(device), self._gradients[key].to(device)
        leaves = {path: each.detach().requires_grad_() for path, each in read.tensors().items()}
        with torch.enable_grad():
            made = self._run(block_name, block, sequence, read.replaced(leaves)).tensors()
            felt = {path: each for path, each in gradient.tensors().items() if path in made}
            outputs = {path: made[path] for path in felt if made[path].requires_grad}
            found = torch.autograd.grad(
                list(outputs.values()),
                list(leaves.values()),
                [felt[path] for path in outputs],
                allow_unused=True,
            )
        return read.replaced(
            {
                path: torch.zeros_like(leaf) if each is None else each
                for (path, leaf), each in zip(leaves.items(), found, strict=True)
            }
        )

    def forget(self, block_name: str) -> None:
        """Give back the memory of a block that is done."""
        for sequence in self._sequences():
            self._read.pop((block_name, sequence), None)
            self._gradients.pop((block_name, sequence), None)

    def _run(self, block_name: str, block: nn.Module, sequence: Place, read: "Passed") -> "Passed":
        """Run a block on a copy of what it reads, and return what the next one reads."""
        # A block may write over what it is given, and this is needed again to go backward.
        read = read.replaced({path: each.clone() for path, each in read.tensors().items()})
        self._arguments.set_handed(sequence, read.handed)
        inputs = self._arguments.of(block_name, sequence)
        output = call_block(block, read.state, inputs)
        self._arguments.hand_over(sequence, output)
        return Passed(first_output(output), self._arguments.handed(sequence))

    def _forward(self, bar: "Bar") -> None:
        source, first = self._source, self._names[0]
        with source.embedding():
            for sequence in self._sequences():
                state, inputs = embed(source.model, source.adapter, self._ids(sequence))
                self._arguments.catch(sequence, inputs)
                self._read[first, sequence] = Passed(state, {}).to(CPU)
        following = [*self._names[1:], _HEAD]
        blocks = Blocks(source, self._names, self._devices, ahead=False)
        for name, after in zip(self._names, following, strict=True):
            with blocks.block(name) as block:
                for sequence in self._sequences():
                    read = self._read[name, sequence].to(self._device(name))
                    self._read[after, sequence] = self._run(name, block, sequence, read).to(CPU)
            bar.update()

    def _from_loss(self) -> None:
        source, last = self._source, self._names[-1]
        with source.outer():
            for sequence in self._sequences():
                state = self._read.pop((_HEAD, sequence)).state.requires_grad_()
                with torch.enable_grad():
                    ids = self._ids(sequence)
                    logits = logits_of(source.model, source.adapter, ids, state)
                    if self._labels == "text":
                        loss = cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
                    else:
                        loss = own_loss(logits[0], crc32(f"{sequence}".encode()))
                    (gradient,) = torch.autograd.grad(loss, state)
                if not torch.isfinite(gradient).all():
                    raise ValueError(
                        f"the model's loss on text in '{sequence[0]}' has gradients with NaN or "
                        "Inf; use float32 weights (--dtype), or leave out fisher_tokens."
                    )
                self._gradients[last, sequence] = Passed(gradient, {}).to(CPU)

    def _backward(self, bar: "Bar") -> None:
        blocks = Blocks(self._source, self._names, self._devices, ahead=False)
        for previous, name in reversed(list(pairwise(self._names))):
            with blocks.block(name) as block:
                for sequence in self._sequences():
                    found = self.backward(name, block, sequence)
                    self._gradients[previous, sequence] = found.to(CPU)
            bar.update()

    def _sequences(self) -> Iterator[Place]:
        for language, indexes in self._own.items():
            for index in indexes:
                yield language, index

    def _ids(self, sequence: Place) -> Tensor:
        language, index = sequence
        return self._text.ids[language][index : index + 1]

    def _device(self, block_name: str) -> torch.device:
        return self._devices.get(block_name, CPU)


def own_loss(logits: Tensor, seed: int) -> Tensor:
    """Return the loss of labels drawn from the predictions themselves, summed over tokens.

    Args:
        logits: [tokens, vocabulary].
        seed: what is drawn depends on it alone, on every device.
    """
    draw = torch.Generator().manual_seed(seed)
    scores = torch.log_softmax(logits.float(), -1)
    below = scores.detach().double().exp().cumsum(-1)
    drawn = torch.rand(len(scores), 1, generator=draw, dtype=torch.float64).to(scores.device)
    labels = torch.searchsorted(below, drawn * below[:, -1:]).clamp(max=scores.shape[1] - 1)
    return -scores.gather(1, labels).sum()
