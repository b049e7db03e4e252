"""Rotations of the residual stream and of heads, folded into the weights of a model.

An orthogonal Q takes the residual stream h to h Q: what writes it is rotated, and so is what reads
it, and a norm without weights of its own commutes with Q. The values of a key-value head are
rotated where they are made, and back where they are read. The model computes what it computed
before (QuaRot, arXiv 2404.00456, but for what it does while the model runs).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlcalib import _core as core
from mlcalib.models import Adapter, ScaleGroup, find_adapter

ROTATIONS = ("residual", "heads", "both")


class Double(TorchFunctionMode):
    """Computes in float64 what transformers computes in float32 whatever the dtype: norms, softmax.

    Without it, two models that are equal would differ by the rounding of their norms.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if function is Tensor.float or (function is Tensor.to and torch.float32 in args):
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def random_rotation(channels: int, generator: torch.Generator) -> Tensor:
    """Return an orthogonal float64 [channels, channels]: random signs, Hadamard ⊗ orthogonal.

    Of 2ᵏ · m channels with an odd m, the Hadamard matrix is of 2ᵏ and the orthogonal one, which is
    uniformly random, of m.
    """
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while channels % (2 * len(hadamard)) == 0:
        hadamard = torch.kron(
            hadamard, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
        )
    odd = channels // len(hadamard)
    signs = torch.randint(2, (channels, 1), generator=generator).double() * 2 - 1
    return signs * torch.kron(_orthogonal(odd, generator), hadamard)


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return (q * r.diagonal().sign()).contiguous()


def keeping_the_mean(channels: int, generator: torch.Generator) -> Tensor:
    """Return an orthogonal Q with Q 1 = 1, with which norms that subtract the mean commute."""
    first = torch.full((channels, 1), channels**-0.5, dtype=torch.float64)
    rest = torch.randn(channels, channels - 1, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(torch.cat([first, rest], 1))[0]  # the first column is ±1 / sqrt(n)
    inner = torch.block_diag(
        torch.ones(1, 1, dtype=torch.float64), random_rotation(channels - 1, generator)
    )
    return basis @ inner @ basis.T


@torch.no_grad()
def rotate_residual(model: Any, adapter: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
    """Rotate the residual stream, h → h Q, by folding Q into all that reads or writes it.

    Weights of norms go into the linears that read them, and the output head gets weights of its
    own. The logits stay, unless norms stand behind attention and MLP: see ``largest_change``.

    Returns:
        Linear → T [in, in], where its input is now x T: diag(1 / weight of the norm) Q.
    """
    changes = {}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    norms = [module for name, module in model.named_modules() if name.endswith("layernorm")]
    subtracts = any(type(norm).__name__.endswith("LayerNorm") for norm in norms)
    make = keeping_the_mean if subtracts else random_rotation
    q = make(embedding.weight.shape[1], generator).to(embedding.weight)
    _change(embedding, lambda weight: weight @ q)
    offset = 0.0
    for block_name, block in adapter.named_blocks(model):
        for group in adapter.scale_groups_of(block):
            names = _readers(adapter, block, group)
            readers = [adapter.module(block, name) for name in names]
            source = adapter.module(block, group.source)
            if isinstance(source, nn.Linear):  # values and products of gate and up
                for writer in readers:
                    _change(writer, lambda weight: q.T @ weight, along_outputs=True)
            else:
                offset = group.offset
                change = q / (offset + source.weight)[:, None]
                changes |= {f"{block_name}.{name}": change for name in names}
                _fold_norm(source, readers, offset)
                for reader in readers:
                    _change(reader, lambda weight: weight @ q)
    _fold_norm(model.base_model.norm, [head], offset)
    _change(head, lambda weight: weight @ q)
    return changes


@torch.no_grad()
def rotate_heads(model: Any, adapter: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
    """Rotate the values of each key-value head, and back in what the output projection reads.

    Returns:
        Linear → T [in, in], where its input is now x T.
    """
    changes = {}
    for block_name, block in adapter.named_blocks(model):
        for group in adapter.scale_groups_of(block):
            if not group.source.endswith("v_proj"):
                continue
            values = adapter.module(block, group.source)
            (name,) = _readers(adapter, block, group)
            output = adapter.module(block, name)
            size = adapter.module(block, group.source.rpartition(".")[0]).head_dim
            heads = [
                random_rotation(size, generator).to(values.weight)
                for _ in range(values.out_features // size)
            ]
            shared = output.in_features // values.out_features  # query heads of a key-value head
            made = torch.block_diag(*heads)
            read = torch.block_diag(*(head for head in heads for _ in range(shared)))
            _change(values, lambda weight, made=made: made.T @ weight, along_outputs=True)
            _change(output, lambda weight, read=read: weight @ read)
            changes[f"{block_name}.{name}"] = read
    return changes


def rotate(model: Any, rotation: str, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Return a rotated copy of a model in float64, and linear → how its input changed."""
    model = copy.deepcopy(model).double()
    adapter = find_adapter(type(model).__name__)
    generator = torch.Generator().manual_seed(seed)
    changes: dict[str, Tensor] = {}
    if rotation in ("residual", "both"):
        changes |= rotate_residual(model, adapter, generator)
    if rotation in ("heads", "both"):
        changes |= rotate_heads(model, adapter, generator)
    return model, changes


@torch.no_grad()
def gather(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Return linear → the Gram of what it reads, [in, in]; linears of one input share one.

    Args:
        model: of one kind of block.
        ids: [n, seq_len], of all calibration text.
    """
    adapter, grams, hooks = find_adapter(type(model).__name__), dict[str, Tensor](), []
    for block_name, block in adapter.named_blocks(model):
        for names in adapter.linears_of(block).values():
            linear = adapter.linear(block, names[0])
            gram = torch.zeros(linear.in_features, linear.in_features, dtype=linear.weight.dtype)
            grams |= {f"{block_name}.{name}": gram for name in names}

            def add(_: nn.Module, read: tuple[Tensor], gram: Tensor = gram) -> None:
                x = read[0].flatten(0, -2)
                gram += x.T @ x

            hooks.append(linear.register_forward_pre_hook(add))
    for sequence in ids:
        model(sequence[None])
    for hook in hooks:
        hook.remove()
    return grams


def rotated_gram(gram: Tensor, change: Tensor | None) -> Tensor:
    """Return Tᵀ G T, the Gram of inputs x T; G where they did not change."""
    return gram if change is None else change.T @ gram.to(change) @ change


@torch.no_grad()
def solve(model: Any, grams: dict[str, Tensor], bits: int, group_size: int) -> None:
    """Quantize the linears of a model by GPTQ with mlcalib's defaults, from their Grams."""
    options = core.GptqOptions(core.GridSpec(bits=bits, group_size=group_size, range="gram"))
    for name, gram in grams.items():
        linear = model.get_submodule(name)
        solved = core.gptq(linear.weight.float(), gram.float(), options)
        linear.weight = nn.Parameter(solved.dequantize().to(linear.weight))


@torch.no_grad()
def largest_change(model: Any, rotated: Any, ids: Tensor) -> float:
    """Return the largest change of a logit in float64, as a fraction of the largest logit."""
    with Double():
        expected = copy.deepcopy(model).double()(ids).logits
        return float((rotated(ids).logits - expected).abs().max() / expected.abs().max())


def _readers(adapter: Adapter, block: nn.Module, group: ScaleGroup) -> list[str]:
    linears = adapter.linears_of(block)
    return [*(name for key in group.inputs for name in linears[key]), *group.readers]


def _fold_norm(norm: nn.Module, readers: list[nn.Module], offset: float) -> None:
    scale = offset + norm.weight
    for reader in readers:
        _change(reader, lambda weight: weight * scale)
    norm.weight = nn.Parameter(torch.full_like(norm.weight, 1 - offset))


def _change(
    module: nn.Module, change: Callable[[Tensor], Tensor], *, along_outputs: bool = False
) -> None:
    """Change a weight, and with the outputs of a linear its bias."""
    module.weight = nn.Parameter(change(module.weight))
    if along_outputs and getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(change(module.bias))
