"""Gradients of the float model's loss at the outputs of its blocks, a block at a time."""

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.arguments import Arguments
from mlcalib.models.device import CPU
from mlcalib.models.running import BlockInputs, embed, logits_of, run_block
from mlcalib.quantization.read_ahead import Blocks
from mlcalib.quantization.source import Source

Place = tuple[str, int]
"""Language, and number of a sequence of its text."""


class LossGradients:
    """What each block reads, and the gradient of the loss at what it returns.

    The loss is that of labels drawn from the model's own predictions, summed over tokens: its
    gradients' products are the Fisher information of the model, whatever the text says (Kunstner et
    al., arXiv 1905.12558). Two tensors of the size of a hidden state are kept for each block and
    sequence, in the host's memory.

    Three runs of each sequence make them: forward, forward again for the graph of a block, and
    backward; no gradient of a weight is made.
    """

    def __init__(
        self,
        source: Source,
        text: CalibrationSet,
        counts: Mapping[str, int],
        devices: Mapping[str, torch.device],
    ) -> None:
        """Take what is to run; nothing does yet.

        Args:
            source: the float model.
            text: the calibration text.
            counts: language → number of its sequences, from the first on.
            devices: block → where it runs.

        Raises:
            NotImplementedError: blocks read what others made beside the hidden states.
        """
        adapter = source.adapter
        if adapter.handed_over or adapter.filled:
            raise NotImplementedError(
                f"{type(source.model).__name__} hands more than hidden states from block to block, "
                "and gradients are not taken through that; leave out fisher_tokens."
            )
        self._source, self._text, self._counts, self._devices = source, text, counts, devices
        self._names = [name for name, _ in adapter.named_blocks(source.model)]
        self._arguments = Arguments(adapter, self._device)
        self._states: dict[tuple[str, Place], Tensor] = {}
        self._gradients: dict[tuple[str, Place], Tensor] = {}

    def run(self, stopwatch: Stopwatch, description: str | None) -> None:
        """Make them all.

        Args:
            stopwatch: gets the time.
            description: what the progress bar says; None shows none.

        Raises:
            ValueError: the loss is NaN or Inf; names the language.
        """
        steps = 2 * len(self._names) + 1
        with (
            stopwatch.timed("gradients"),
            tqdm(total=steps, desc=description, unit="block", disable=description is None) as bar,
        ):
            self._forward(bar)
            self._from_loss()
            bar.update()
            self._backward(bar)

    def of(self, block_name: str, sequence: Place) -> tuple[Tensor, BlockInputs, Tensor]:
        """Return a block's hidden states, other arguments, and gradient, where the block runs."""
        device, key = self._device(block_name), (block_name, sequence)
        inputs = self._arguments.of(block_name, sequence)
        return self._states[key].to(device), inputs, self._gradients[key].to(device)

    def forget(self, block_name: str) -> None:
        """Give back the memory of a block that is done."""
        for sequence in self._sequences():
            self._states.pop((block_name, sequence), None)
            self._gradients.pop((block_name, sequence), None)

    def _forward(self, bar: "tqdm[Any]") -> None:
        source, first = self._source, self._names[0]
        with source.embedding():
            start = source.model.get_input_embeddings().weight.device
            for sequence in self._sequences():
                state, inputs = embed(source.model, source.adapter, self._ids(sequence).to(start))
                self._arguments.catch(sequence, inputs)
                self._states[first, sequence] = state.to(CPU)
        following = [*self._names[1:], ""]
        for name, after in zip(self._names, following, strict=True):
            with Blocks(source, [name], self._devices, ahead=False).block(name) as block:
                for sequence in self._sequences():
                    state = self._states[name, sequence].to(self._device(name))
                    output = run_block(block, state, self._arguments.of(name, sequence))
                    self._states[after, sequence] = output.to(CPU)
            bar.update()

    def _from_loss(self) -> None:
        source, last = self._source, self._names[-1]
        with source.outer():
            start = source.model.get_input_embeddings().weight.device
            for sequence in self._sequences():
                state = self._states.pop(("", sequence)).to(start).requires_grad_()
                with torch.enable_grad():
                    ids = self._ids(sequence).to(start)
                    logits = logits_of(source.model, source.adapter, ids, state)
                    loss = own_loss(logits[0], crc32(f"{sequence}".encode()))
                    (gradient,) = torch.autograd.grad(loss, state)
                if not torch.isfinite(gradient).all():
                    raise ValueError(
                        f"the model's loss on text in '{sequence[0]}' has gradients with NaN or "
                        "Inf; use float32 weights (--dtype), or leave out fisher_tokens."
                    )
                self._gradients[last, sequence] = gradient.to(CPU)

    def _backward(self, bar: "tqdm[Any]") -> None:
        before = [None, *self._names[:-1]]
        for name, previous in zip(reversed(self._names), reversed(before), strict=True):
            if previous is None:
                bar.update()
                return
            with Blocks(self._source, [name], self._devices, ahead=False).block(name) as block:
                for sequence in self._sequences():
                    found = backward(block, *self.of(name, sequence))
                    self._gradients[previous, sequence] = found.to(CPU)
            bar.update()

    def _sequences(self) -> Iterator[Place]:
        for language, count in self._counts.items():
            for index in range(count):
                yield language, index

    def _ids(self, sequence: Place) -> Tensor:
        language, index = sequence
        return self._text.ids[language][index : index + 1]

    def _device(self, block_name: str) -> torch.device:
        return self._devices.get(block_name, CPU)


def backward(block: nn.Module, state: Tensor, inputs: BlockInputs, gradient: Tensor) -> Tensor:
    """Return the gradient at a block's hidden states, from that at what it returns.

    Args:
        block: the block.
        state: what it reads, [1, seq_len, hidden size].
        inputs: its other arguments.
        gradient: at its output, in the shape of ``state``.
    """
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        output = run_block(block, leaf.clone(), inputs)  # a block may write over what it reads
        (found,) = torch.autograd.grad(output, leaf, gradient)
    return found


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
