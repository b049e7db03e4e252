"""The plan of a study: its checkpoints, and the tokens, memory and disk that they take."""

import math
from dataclasses import dataclass

from mlcalib.formats import formats
from mlcalib.languages import language_set
from mlcalib.studies.evaluate import FLOAT, evaluation_file
from mlcalib.studies.run import ModelStudy

_FLOAT = 4  # bytes of an element of a Gram


@dataclass(frozen=True)
class Plan:
    """What is left to do on one model.

    Attributes:
        done: the finished checkpoints, which are skipped.
        todo: the checkpoints to be made.
        tokens: the calibration tokens that run through the model.
        separate: the tokens that separate quantizations of ``todo`` would take.
        memory: an estimate in bytes, for a block, its statistics, one variant and hidden states.
        disk: an estimate in bytes, for the checkpoints and for the files that are kept until these
            are finished and, for fidelity, evaluated.
    """

    done: list[str]
    todo: list[str]
    tokens: int
    separate: int
    memory: int
    disk: int


def plan(study: ModelStudy) -> Plan:
    """Return what is left to do, without running anything.

    Args:
        study: a study on one model.
    """
    variants = study.variants
    done = [name for name in variants if study.finished(name)]
    todo = [name for name in variants if name not in done]
    text = study.text
    used = [variants[name].setting for name in todo if variants[name].setting is not None]
    separate = sum(sum(text.settings[name].tokens.values()) for name in used if name and text)
    # Statistics are shared by variants with float propagation; the others have a pass of their own.
    own = [name for name in todo if variants[name].propagate == "quantized"]
    tokens = 0
    if text is not None:
        shared = len(todo) > len(own)
        tokens = sum(text.union.tokens.values()) if shared else 0
        settings = [text.settings[variants[name].setting or ""] for name in own]
        tokens += sum(sum(each.tokens.values()) for each in settings)
    return Plan(done, todo, tokens, separate, _memory(study), _disk(study, todo))


def table(planned: Plan, study: ModelStudy) -> str:
    """Return a plan as plain text."""
    lines = [f"model {study.source.name} ({study.slug}): {len(planned.todo)} checkpoints to make"]
    for name in study.variants:
        setting = study.variants[name].setting
        text = study.text.settings[setting].tokens if setting and study.text else {}
        tokens = f"{sum(text.values()):,} tokens of {', '.join(text)}" if text else "no text"
        state = "done, skipped" if name in planned.done else "to do"
        lines.append(f"  {name:40} {state:14} {tokens}")
    lines += [
        f"  calibration tokens through the model: {planned.tokens:,}; separate quantizations "
        f"would take {planned.separate:,}",
        f"  memory: about {planned.memory / 2**30:.1f} GiB besides the libraries; "
        f"disk: about {planned.disk / 2**30:.1f} GiB",
    ]
    return "\n".join(lines)


def _memory(study: ModelStudy) -> int:
    source, adapter = study.source, study.source.adapter
    _, block = max(
        adapter.named_blocks(source.model),
        key=lambda each: sum(tensor.numel() for tensor in each[1].parameters()),
    )
    size = source.dtype.itemsize
    weights: int = sum(tensor.numel() for tensor in block.parameters())
    squares = [
        adapter.linear(block, members[0]).in_features ** 2
        for members in adapter.linears_of(block).values()
    ]
    text = study.text
    prefixes = len(text.prefixes) if text else 0
    languages = len(study.layers_languages())
    statistics = sum(squares) * _FLOAT * (prefixes + languages + 1)
    # A copy of the block for the variant at work, its weights and codes, and the solver's factor.
    variant = weights * (size + _FLOAT + 1) + 2 * max(squares) * _FLOAT
    largest: int = max(tensor.numel() for tensor in source.model.parameters()) * size
    held = source.resident or largest + weights * size
    hidden = _hidden(study) if study.spec.hidden_states == "memory" else 0
    return held + statistics + variant + hidden


def _hidden(study: ModelStudy) -> int:
    sequences = 0
    if study.text is not None:
        sequences = sum(len(ids) for ids in study.text.union.ids.values())
    layers = study.spec.layers
    held = len(study.layers_languages()) * (layers.tokens if layers else 0)
    return (sequences * study.spec.seq_len + held) * _token(study)


def _token(study: ModelStudy) -> int:
    """Return the bytes of a token's hidden state."""
    width: int = study.source.model.get_input_embeddings().weight.shape[1]
    return width * study.source.dtype.itemsize


def _states(study: ModelStudy) -> int:
    """Return the bytes of what the float model leaves for others to be compared with."""
    spec = study.spec.evaluation
    evaluated = (evaluation_file(study, name).is_file() for name in (FLOAT, *study.variants))
    if spec is None or not spec.fidelity or all(evaluated):
        return 0
    windows = len(language_set(spec.languages).weights) * math.ceil(
        spec.tokens / study.spec.seq_len
    )
    return windows * study.spec.seq_len * _token(study)


def _disk(study: ModelStudy, todo: list[str]) -> int:
    sizes = [_checkpoint(study, name) for name in todo]
    # One checkpoint is written while its blocks still lie beside.
    hidden = 2 * _hidden(study) if study.spec.hidden_states == "disk" else 0
    # The hidden states of fidelity are written when those of the pass are gone.
    return sum(sizes) + max(max(sizes, default=0) + hidden, _states(study))


def _checkpoint(study: ModelStudy, name: str) -> int:
    model, size, specs = study.source.model, study.source.dtype.itemsize, study.recipes[name].specs
    packed = formats.get(study.spec.format).codes is not None
    total: int = sum(piece.size for piece in study.source.outside().values())
    for block, module in study.source.adapter.named_blocks(model):
        for key, tensor in module.state_dict().items():
            spec = specs.get(f"{block}.{key.removesuffix('.weight')}")
            if spec is None or not packed:
                total += tensor.numel() * size
            else:
                groups = tensor.shape[0] * spec.groups(tensor.shape[1])
                total += tensor.numel() * spec.bits // 8 + groups * (size + 1)
    return total
