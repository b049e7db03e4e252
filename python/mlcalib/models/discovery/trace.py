"""Run a model once, and see which blocks it has, what they are called with and who reads what."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcalib.models.experts import ExpertList
from mlcalib.models.kinds import Kind, kind_of
from mlcalib.models.running import Stop, first_output, hidden_of, with_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16
EXPERTS = 8
"""Of a list of experts as many are run: they are alike, and scaling makes copies of them."""


@dataclass
class Reading:
    """A module with a weight, and what it read and gave when it ran.

    Attributes:
        name: in the block.
        module: itself.
        read: its input.
        version: of the input then: what is changed in place is another tensor.
        gave: its output.
    """

    name: str
    module: nn.Module
    read: Tensor
    version: int
    gave: Tensor | None = None

    def reads(self, tensor: Tensor, version: int) -> bool:
        """Return whether it read this tensor, in whatever shape with as many channels."""
        return self.version == version and is_same(self.read, tensor)


@dataclass
class Call:
    """A call of a child of a list of modules.

    Attributes:
        name: of the child in the model.
        module: the child.
        kind: what it shares with others that work alike.
        shared: modules of it whose weights another block has, too; they are not scaled.
        changed: its kind when it ran, where the model had made another of it; else None.
        args: positional arguments, the very objects.
        kwargs: keyword arguments.
        before: copies of both as they were before the call; only of the first of a kind.
        readings: modules that ran, in order; only of the first of a kind.
        gave: the output.
    """

    name: str
    module: nn.Module
    kind: Kind
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shared: frozenset[str] = frozenset()
    changed: Kind | None = None
    before: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    readings: list[Reading] = field(default_factory=list)
    gave: Any = None


def is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are one, in whatever shape with as many channels."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.numel() == other.numel()
        and one.dim() > 0
        and one.shape[-1] == other.shape[-1]
    )


def trace(model: "PreTrainedModel") -> list[Call]:
    """Run a model on a few tokens; return the calls of its blocks, in the order they run.

    Of blocks that work alike the first one runs, and the others hand on what they get; where that
    is not enough, because later blocks read what those make, all run.

    Args:
        model: with weights, which may be made up. It keeps no more than the first experts.

    Raises:
        NotImplementedError: the model does not run on token ids alone, or has no blocks that hand
            hidden states on.
    """
    generator = torch.Generator().manual_seed(1)
    vocabulary = _vocabulary(model)
    kinds = _kinds(model)
    for module in model.modules():
        if isinstance(module, ExpertList):
            module.forget(EXPERTS)
    without_experts = _kinds(model)
    ids = torch.randint(3, max(4, min(vocabulary, 250)), (1, TOKENS), generator=generator)
    for skips in (True, False):
        try:
            calls = _run(model, ids, kinds, skips=skips)
        except Exception as error:  # whatever another library's model raises
            if skips:
                continue
            raise NotImplementedError(
                f"{type(model).__name__} does not run on token ids alone "
                f"({type(error).__name__}: {error}); mlcalib calibrates on text."
            ) from error
        break
    blocks = _blocks(model, calls)
    for call in blocks:
        now = kind_of(call.module)
        call.changed = now if now != without_experts[call.name] else None
    return blocks


def _kinds(model: nn.Module) -> dict[str, Kind]:
    """Return child of a list of modules → its kind."""
    return {
        f"{path}.{index}": kind_of(module)
        for path, modules in _outermost(model).items()
        for index, module in enumerate(modules)
    }


def _vocabulary(model: "PreTrainedModel") -> int:
    """Return how many tokens have an embedding."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise NotImplementedError(f"{type(model).__name__} has no embeddings of tokens.")
    return weight.shape[0]


def language_models(model: nn.Module) -> Iterator[str]:
    """Yield the paths of the models inside of a model that predict tokens, the outermost first."""
    from transformers import PreTrainedModel

    for path, module in model.named_modules():
        if path and isinstance(module, PreTrainedModel):
            with suppress(AttributeError, NotImplementedError):  # of models without a vocabulary
                if isinstance(module.get_output_embeddings(), nn.Linear):
                    yield path


@torch.no_grad()
def _run(
    model: "PreTrainedModel", ids: Tensor, kinds: Mapping[str, Kind], *, skips: bool
) -> dict[str, list[Call]]:
    """Return list of modules → the calls of its children."""
    calls: dict[str, list[Call]] = {}
    seen: dict[Kind, Any] = {}

    def calling(path: str, name: str, module: nn.Module) -> Callable[..., Any]:
        kind, own = kinds[name], module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(name, module, kind, args, kwargs)
            calls.setdefault(path, []).append(call)
            if skips and kind in seen and seen[kind] is not None:
                call.gave = with_hidden(seen[kind], hidden_of(args, kwargs))
                return call.gave
            call.before = copy.deepcopy((args, kwargs))
            with _reading(module, call.readings):
                call.gave = own(*args, **kwargs)
            seen.setdefault(kind, call.gave)
            return call.gave

        return forward

    with ExitStack() as stack:
        for path, modules in _outermost(model).items():
            for index, module in enumerate(modules):
                module.forward = calling(path, f"{path}.{index}", module)
                stack.callback(delattr, module, "forward")
        if (head := model.get_output_embeddings()) is not None:
            stack.callback(head.register_forward_pre_hook(_stop).remove)
        with suppress(Stop):
            model(input_ids=ids, use_cache=False)
    return calls


def _stop(*_: Any) -> None:
    raise Stop


def _outermost(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of modules that stand in no other list."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[path] = module
    return found


@contextmanager
def _reading(block: nn.Module, readings: list[Reading]) -> Iterator[None]:
    """Note every module with a weight of two dimensions or more, and every norm, that runs."""
    handles = []
    open_readings: dict[str, Reading] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = [*args, *kwargs.values()]
            x = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)
            if x is not None:
                open_readings[name] = Reading(name, module, x, x._version)
                readings.append(open_readings[name])

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            given = first_output(output)
            if (reading := open_readings.pop(name, None)) and isinstance(given, Tensor):
                reading.gave = given

        return hook

    for name, module in block.named_modules():
        if name and (
            any(True for _ in module.parameters(recurse=False)) or isinstance(module, ExpertList)
        ):
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: "PreTrainedModel", calls: dict[str, list[Call]]) -> list[Call]:
    """Return the calls of the list that hands hidden states on; the largest, if several do."""

    def size(path: str) -> int:
        return sum(each.numel() for each in model.get_submodule(path).parameters())

    found = [path for path, each in calls.items() if _hands_on(each)]
    if not found:
        raise NotImplementedError(
            f"{type(model).__name__} has no list of blocks each of which reads what the one before "
            "gave; write a family file (docs/how-to/add-a-model.md)."
        )
    chosen = calls[max(found, key=size)]
    if len({call.name for call in chosen}) < len(chosen):
        raise NotImplementedError(
            f"{type(model).__name__} runs blocks more than once ({chosen[0].name} among them), "
            "which mlcalib cannot quantize block by block."
        )
    return chosen


def _hands_on(calls: list[Call]) -> bool:
    states = []
    for call in calls:
        try:
            states.append((hidden_of(call.args, call.kwargs), first_output(call.gave)))
        except ValueError:
            return False
    if not all(isinstance(given, Tensor) for _, given in states):
        return False
    pairs = pairwise(states)
    return all(
        given.shape == read.shape and is_same(given, read) for (_, given), (read, _) in pairs
    )
