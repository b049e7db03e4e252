"""The linear that adds to a block's hidden states last, and what it can still make up for there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mlcalib.models import Adapter

_RIDGE = 1e-6  # of the mean of W Wᵀ's diagonal: rows of weights may be alike
_STEPS = (1.0, 4.0)  # changes of the output, in root mean squares of the block's output


@dataclass(frozen=True)
class StreamWriter:
    """A linear whose output reaches the block's output unchanged: y = r + c W x.

    Attributes:
        name: its input.
        inverse: W⁺ / c, float32 [in, out].
    """

    name: str
    inverse: Tensor

    def reference(self, x: Tensor, wanted: Tensor, output: Tensor) -> Tensor:
        """Return what the linear would have to read for the block to return what is wanted.

        The deviation E of the input from it has W E = Σ d xᵀ / c over tokens, where d is the error
        of all that the block returns, and not only of what the linear reads.

        Args:
            x: what it reads, [tokens, in].
            wanted: hidden states y' that the float model's block returns.
            output: hidden states y that the block returns with x.
        """
        missing = (wanted.float() - output.float()).flatten(0, -2)
        return x.float() + missing @ self.inverse.t()


@dataclass(frozen=True)
class Behind:
    """A block with what is solved of it, for what its other linears read behind that.

    Attributes:
        block: its first linears have their new weights.
        divided: input → what its channels are divided by there, float32 [in].
    """

    block: nn.Module
    divided: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Comparison:
    """A sequence in both models: what linears read in the quantized one beside the float one's.

    Attributes:
        writer: the linear that is compared when the block has run; None where there is none.
        divided: input → what its channels are divided by in the quantized model alone.
    """

    writer: StreamWriter | None = None
    divided: Mapping[str, Tensor] = field(default_factory=dict)
    _float: Mapping[str, Tensor] = field(default_factory=dict)
    _wanted: Tensor | None = None
    _read: Tensor | None = None

    def begin(self, read: Mapping[str, Tensor], returned: Tensor | None) -> None:
        """Go on to a sequence, with what the float model's linears read and its block returned."""
        self._float, self._wanted, self._read = read, returned, None

    def holds(self, name: str, x: Tensor) -> bool:
        """Take what the writer reads; return False for other inputs."""
        if self.writer is None or name != self.writer.name:
            return False
        self._read = x.clone()  # the model may write over it
        return True

    def reference(self, name: str) -> Tensor | None:
        """Return what an input is compared with."""
        found, divided = self._float.get(name), self.divided.get(name)
        return found if found is None or divided is None else found / divided

    def end(self, output: Tensor | None) -> tuple[str, Tensor, None, Tensor] | None:
        """Return the writer's input, what it read, and what that is compared with, if it read."""
        writer, x, wanted = self.writer, self._read, self._wanted
        if writer is None or x is None or wanted is None or output is None:
            return None
        return writer.name, x, None, writer.reference(x, wanted, output)


def find_stream_writer(
    adapter: Adapter, block: nn.Module, run: Callable[[], Tensor]
) -> StreamWriter | None:
    """Return the last linear of a block if what it returns is added to the hidden states.

    That is tried on the block: its output has to follow changes of the linear's output, small and
    large ones by the same factor. A norm behind the linear, as Gemma 2 has, does not let it.

    Args:
        adapter: the model's family.
        block: the block.
        run: runs it on some hidden states, and returns what comes out, [1, tokens, hidden size].
    """
    linears = list(adapter.linears_of(block).items())
    name, members = linears[-1] if linears else ("", ())
    if len(members) != 1 or adapter.expert_of(members[0]) is not None:
        return None
    linear = adapter.linear(block, members[0])
    plain = run().float()
    size = float(plain.square().mean().sqrt())
    if linear.out_features != plain.shape[-1] or not size > 0 or not linear.weight.any():
        return None
    change = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0)).to(plain) * size
    tolerance = 16 * max(torch.finfo(linear.weight.dtype).eps, 1e-5)
    factors = []
    for step in _STEPS:
        moved = _run_with(linear, change * step, run)
        if moved is None:
            return None
        follows = moved.float() - plain
        factor = float((follows * change).sum() / change.square().sum() / step)
        rest = follows - factor * step * change
        if float(rest.norm()) > tolerance * float(follows.norm()):
            return None
        factors.append(factor)
    small, large = factors
    if small == 0 or abs(large / small - 1) > tolerance:
        return None
    rounded = float(f"{small:.3g}")  # what text it was tried on does not matter
    return StreamWriter(name, _pseudo_inverse(linear.weight) / rounded)


def _run_with(linear: nn.Module, change: Tensor, run: Callable[[], Tensor]) -> Tensor | None:
    """Run with something added to what a linear returns; None if that has another shape."""
    fits = True

    def add(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal fits
        fits = output.numel() == change.numel()
        return output + change.to(output.dtype).reshape(output.shape) if fits else output

    handle = linear.register_forward_hook(add)
    try:
        moved = run()
    finally:
        handle.remove()
    return moved if fits else None


def _pseudo_inverse(weight: Tensor) -> Tensor:
    """Return W⁺, float32 [in, out], of the weight [out, in]."""
    wide = weight.detach().float()
    if wide.shape[0] > wide.shape[1]:
        return _pseudo_inverse(wide.t()).t()
    gram = wide @ wide.t()
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()))
    return torch.cholesky_solve(wide, torch.linalg.cholesky(gram)).t()
