"""The plan of a study: its checkpoints, and the tokens, memory and disk that they take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlcalib.common.ranks import Ranks
from mlcalib.languages import language_set
from mlcalib.models.device import own_device
from mlcalib.notebook import html
from mlcalib.quantization.memory import MemoryPlan
from mlcalib.quantization.memory_needs import OtherText
from mlcalib.quantization.pass_plan import plan_pass
from mlcalib.studies.evaluate import evaluation_file
from mlcalib.studies.grid import FLOAT
from mlcalib.studies.layer_measures import LayerMeasures
from mlcalib.studies.run import ModelStudy


@dataclass(frozen=True)
class Plan:
    """What is left to do on one model.

    Attributes:
        model: its name, and that of its folder in the study.
        texts: variant → language → calibration tokens; empty without text.
        done: the finished checkpoints, which are skipped.
        todo: the checkpoints to be made.
        tokens: the calibration tokens that run through the model.
        separate: the tokens that separate quantizations of ``todo`` would take.
        memory: bytes that quantizing takes on its device.
        disk: an estimate in bytes, for the checkpoints and for the files that are kept until these
            are finished and, for fidelity, evaluated.
        passes: how quantizing uses the memory of its device.
    """

    model: str
    texts: dict[str, dict[str, int]]
    done: list[str]
    todo: list[str]
    tokens: int
    separate: int
    memory: int
    disk: int
    passes: MemoryPlan

    def table(self) -> str:
        """Return the plan as plain text."""
        lines = [self._headline()]
        lines += [f"  {name:40} {state:14} {text}" for name, state, text in self._rows()]
        lines += [f"  {line}" for line in [*self._totals(), *self.passes.table().splitlines()]]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Plan of {self._headline()}, {len(self.done)} done\n{'; '.join(self._totals())}"

    def _repr_html_(self) -> str:
        return html.page(
            html.heading(self._headline()),
            html.table(["checkpoint", "", "calibration"], self._rows(), texts=3),
            html.listing(self._totals()),
            html.folded("memory", Markup(self.passes._repr_html_()), opened=False),
        )

    def _headline(self) -> str:
        return f"model {self.model}: {len(self.todo)} checkpoints to make"

    def _rows(self) -> list[list[str]]:
        """Return for each checkpoint its name, its state, and its text."""
        rows = []
        for name, tokens in self.texts.items():
            text = (
                f"{sum(tokens.values()):,} tokens of {', '.join(tokens)}" if tokens else "no text"
            )
            rows.append([name, "done, skipped" if name in self.done else "to do", text])
        return rows

    def _totals(self) -> list[str]:
        return [
            f"calibration tokens through the model: {self.tokens:,}; separate quantizations would "
            f"take {self.separate:,}",
            f"disk: about {self.disk / 2**30:.1f} GiB",
        ]


class Plans(list[Plan]):
    """What was left to do, for each model of a study."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "Plans: no model"

    def _repr_html_(self) -> str:
        return html.page(*(Markup(each._repr_html_()) for each in self))


def plan(study: ModelStudy, ranks: Ranks) -> Plan:
    """Return what is left to do, without running anything; collective.

    Args:
        study: a study on one model.
        ranks: the processes of the run; memory is that of each of them.
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
    passes = _passes(study, todo, ranks)
    texts: dict[str, dict[str, int]] = {}
    for name, variant in variants.items():
        setting = variant.setting
        texts[name] = dict(text.settings[setting].tokens) if setting and text else {}
    called = f"{study.source.name} ({study.slug})"
    return Plan(
        called, texts, done, todo, tokens, separate, passes.total, _disk(study, todo), passes
    )


def _passes(study: ModelStudy, todo: Sequence[str], ranks: Ranks) -> MemoryPlan:
    """Return how the pass that variants share uses memory; a pass of one variant takes less."""
    spec, text = study.spec, study.text
    variants = []
    for name in todo:
        recipe = study.recipes[name]
        mixture = study.mixture(study.variants[name])
        variants.append(recipe.variant(mixture))
    other = None
    if spec.layers is not None:
        languages = len(study.layers_languages())
        tokens = math.ceil(spec.layers.tokens / spec.seq_len) * spec.seq_len
        other = OtherText(languages, languages * tokens, LayerMeasures.kinds)
    return plan_pass(
        study.source,
        variants,
        text.union if text else None,
        study.source.places(own_device(spec.device, ranks)),
        text.prefixes if text else (),
        other=other,
        on_disk=spec.hidden_states == "disk",
        memory=spec.memory,
        ranks=ranks,
    )


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
    names = [FLOAT, *study.thresholds, *study.variants]
    evaluated = (evaluation_file(study, name).is_file() for name in names)
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
    packed = study.recipes[name].checkpoint_format.codes is not None
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
