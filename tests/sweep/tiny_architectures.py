"""Every causal and image-text class of transformers, as a tiny model with random weights.

A config of the class's defaults is made small by what its settings are called (tiny.yaml). No one
recipe fits all classes, so several are tried until a model can be built and runs on token ids.
"""

import collections
import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

RECIPES = ("table", "table+", "text", "vocabulary", "ratio/16", "ratio/32", "layers")
"""``table`` sets sizes by name; ``table+`` also fills what is None; ``text`` leaves vision and
audio as they are, ``vocabulary`` the vocabulary too; ``ratio`` divides widths; ``layers`` keeps
them."""
LARGEST = {"layers": 250e6, "text": 700e6, "vocabulary": 700e6}
"""Parameters that a model of a recipe may have; of others 120 million."""
HIDDEN = 64
NAMES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tiny.yaml").read_text())


def _whole(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile(f"^({'|'.join(patterns)})$")


WIDTH, HEADS, KEY_VALUE_HEADS = (
    _whole(NAMES[key]) for key in ("width", "heads", "key_value_heads")
)
INNER, DIMENSIONS = (re.compile("|".join(NAMES[key])) for key in ("inner", "dimensions"))
LAYERS, EXPERTS, CHOSEN = NAMES["layers"], NAMES["experts"], NAMES["chosen"]
INTERVALS = re.compile(
    r"(_period|_interval|sliding_window_pattern|layer_group_size|global_attn_every_n_layers)$"
)
TOKENS = re.compile(r"(_token_id|_token_index|_start_id|_end_id|newline_id|patch_id)$")
SENSES = re.compile(r"vision|audio|vq|image|speech|protein|qformer|adapter")


def architectures() -> dict[str, list[str]]:
    """Return class name → the types of models that it is for."""
    found: dict[str, list[str]] = {}
    for names in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, name in names.items():
            for each in name if isinstance(name, tuple | list) else (name,):
                found.setdefault(each, []).append(model_type)
    found |= {
        name: [] for name in NAMES["extra"] if hasattr(transformers, name) and name not in found
    }
    return found


def tiny_models(name: str, model_types: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield (recipe, model or why there is none) of a class, until one is taken."""
    cls = getattr(transformers, name)
    config = _default_config(cls, model_types)
    nested = any(isinstance(each, transformers.PreTrainedConfig) for each in vars(config).values())
    causal = name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    for recipe in RECIPES:
        if recipe in ("text", "vocabulary") and not nested:
            continue
        try:
            small = _Shrinking(recipe, causal).config(config)
            yield recipe, _random_model(cls, small, LARGEST.get(recipe, 120e6))
        except Exception as error:  # whatever a class raises that its config does not suit
            yield recipe, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _default_config(cls: Any, model_types: list[str]) -> Any:
    errors = []
    known = [CONFIG_MAPPING[each] for each in model_types if each in CONFIG_MAPPING]
    for make in (cls.config_class, *known):
        for options in (
            {},
            {"text_config": {"hidden_size_per_layer_input": 0, "model_type": "gemma4_text"}},
        ):
            try:
                return make(**options)
            except Exception as error:
                errors.append(error)
    raise errors[0]


def _random_model(cls: Any, config: Any, largest: float) -> Any:
    try:
        with torch.device("meta"):
            size = sum(each.numel() for each in cls(copy.deepcopy(config)).parameters())
    except Exception:  # some cannot be made there
        size = 0
    if size > largest:
        raise MemoryError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = cls(config).float().eval()
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    held = model.state_dict().keys()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
            parameter.requires_grad_(requires_grad=False)
        for name, buffer in model.named_buffers():
            if name in held and buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer), alpha=0.02)
    return model


class _Shrinking:
    """Makes configs small by one recipe."""

    def __init__(self, recipe: str, causal: bool) -> None:
        self.recipe, self.causal = recipe, causal
        self.fills = recipe in ("table+", "text", "vocabulary")
        self.by_name = recipe == "table" or self.fills
        self.factor = int(recipe.partition("/")[2] or 0)

    def config(self, config: Any, text: bool = True) -> Any:
        """Return a small config of the same class."""
        if not text and self.recipe in ("text", "vocabulary"):
            return config
        special = NAMES["special"].get(type(config).__name__, {})
        one = _OneConfig(self, config, text, special.get("layers"))
        values = one.values() | {key: each for key, each in special.items() if key != "layers"}
        plain = {
            key: each.to_dict() if isinstance(each, transformers.PreTrainedConfig) else each
            for key, each in values.items()
        }
        try:
            return type(config)(**values)
        except Exception as error:
            try:
                return type(config)(**plain)
            except Exception:
                raise error from None


class _OneConfig:
    """One config, with the layers that are kept of it."""

    def __init__(self, how: _Shrinking, config: Any, text: bool, layers: int | None) -> None:
        self.how, self.config, self.text = how, config, text
        own = vars(config)
        self.own: Mapping[str, Any] = own
        is_fields = dataclasses.is_dataclass(type(config))
        self.names = (
            {each.name for each in dataclasses.fields(type(config))} if is_fields else set(own)
        )
        known = getattr(config, "attribute_map", None) or {}
        self.argument = {
            held: name
            for name, held in known.items()
            if name in self.names and held not in self.names
        }
        self.layers = next(
            (own[k] for k in LAYERS if isinstance(own.get(k), int) and own[k] > 0), 0
        )
        self.kept = _kept_layers(own, self.layers) if self.layers else []
        if layers:
            self.kept = [index * self.layers // layers for index in range(layers)]
        self.count = len(self.kept)
        self.heads = next(
            (v for k, v in own.items() if HEADS.match(k) and isinstance(v, int)), None
        )
        self.per_layer = any(
            isinstance(v, list | tuple)
            and self.layers
            and len(v) == self.layers
            and k in self.names
            for k, v in own.items()
        )

    def values(self) -> dict[str, Any]:
        """Return the settings that differ from the class's defaults."""
        found: dict[str, Any] = {}
        for held, value in self.own.items():
            key = self.argument.get(held, held)
            if isinstance(value, transformers.PreTrainedConfig):
                found[key] = self.how.config(value, self.text and not SENSES.search(key))
                continue
            other_flag = isinstance(value, bool) and key != "is_decoder"
            if key not in self.names or other_flag or key in ("id2label", "label2id"):
                continue
            new = self._filled(key, self._smaller(key, value))
            if (
                key == "vision_feature_layer"
                and isinstance(value, list | tuple)
                and not self.how.fills
            ):
                new = [1, 0][: len(value)]
            if key == "is_decoder" and self.how.causal:
                new = True
            listed = isinstance(value, list | tuple)
            if (
                new != value
                or self._is_count(key, value)
                or (listed and self.layers and len(value) in (self.layers, self.count))
            ):
                found[key] = type(value)(new) if listed else new
        return found

    def _is_count(self, key: str, value: Any) -> bool:
        """Return whether a number may differ from the class's default when it is left out."""
        known = HEADS.match(key) or KEY_VALUE_HEADS.match(key)
        return isinstance(value, int) and bool(known or key in (*LAYERS, *EXPERTS, *CHOSEN))

    def _smaller(self, key: str, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            small = self._number(key, value)
            return self._width(key, value) if small is None else small
        if isinstance(value, list | tuple) and self.layers and value:
            return self._list(key, value)
        if isinstance(value, dict) and "rope" in key and self.how.recipe != "layers":
            return _rope(value, self._head())
        return value

    def _number(self, key: str, value: int) -> int | None:  # noqa: PLR0911 - a table
        """Return a count, a place or an id; None for a width."""
        keeps = self.how.recipe == "vocabulary"
        if key in LAYERS:
            return min(value, max(self.count, 2) if value == self.layers else 2)
        if key in ("vocab_size", "decoder_vocab_size"):
            return value if keeps else min(value, 512)
        if TOKENS.search(key) and value >= 480 and not keeps:
            return 480 + value % 30
        if key == "unpadded_vocab_size":
            return min(value, 500)
        if key in EXPERTS and value > 1:
            return min(value, 4)
        if key in CHOSEN or key in ("n_group", "num_expert_group"):
            return min(value, 2)
        if key == "topk_group":
            return 1
        if key in NAMES["windows"] and self.text and value > 8:
            return 8
        if key in NAMES["places"]:
            return min(value, NAMES["fixed"][key])
        if key == "moe_layer_end_index":
            return max(self.count, 2) - 1
        if INTERVALS.search(key) and not self.per_layer and value > 2:
            return 2
        if key.endswith("_layer_offset"):
            return min(value, 1)
        return min(value, self.count) if key == "max_window_layers" else None

    def _width(self, key: str, value: int) -> int:  # noqa: PLR0911 - a table
        if self.how.factor:
            known = WIDTH.match(key) or INNER.search(key) or DIMENSIONS.search(key)
            return max(value // self.how.factor, min(value, 2)) if known and value > 0 else value
        if not self.how.by_name or value <= 0:
            return value
        if key in ("max_position_embeddings", "n_positions"):
            return min(value, 8192)
        if key in NAMES["fixed"]:
            return min(value, NAMES["fixed"][key])
        if WIDTH.match(key):
            return HIDDEN
        if INNER.search(key):
            return 32 if re.search("moe|expert", key) else 96
        if HEADS.match(key):
            return min(value, 4)
        if KEY_VALUE_HEADS.match(key):
            return 4 if value == self.heads else min(value, 2)
        if key == "head_dim":
            own = self.own
            return {own.get("qk_rope_head_dim"): 8, own.get("qk_head_dim"): 24}.get(value, 16)
        if DIMENSIONS.search(key):
            return min(value, 16)
        return min(value, 2) if key in ("n_groups", "mamba_n_groups", "mamba_ngroups") else value

    def _list(self, key: str, value: Any) -> Any:
        new = value
        if list(value) == list(range(self.layers)):
            new = list(range(self.count))
        elif len(value) == self.layers:
            new = [value[index] for index in self.kept]
        elif _is_places(value, self.layers) and "token" not in key:
            new = [self.kept.index(each) for each in value if each in self.kept]
        elif key == "attention_types":
            new = [[kinds, max(1, self.count // len(kinds))] for kinds, _ in value]
        if self.how.by_name and INNER.search(key):
            new = [32 if "moe" in key else 96 for _ in new]
        elif self.how.by_name and HEADS.match(key.replace("_per_layer", "")):
            new = [4 for _ in new]
        elif self.how.factor and INNER.search(key):
            new = [max(1, each // self.how.factor) for each in new]
        return [1 for _ in value] if "token_id" in key else new

    def _head(self) -> int:
        if self.how.by_name:
            return 8 if self.own.get("qk_rope_head_dim") else 16
        head = self.own.get("head_dim") or self.own.get("hidden_size", 64) // (self.heads or 1)
        return max(2, head // (self.how.factor or 1))

    def _filled(self, key: str, value: Any) -> Any:
        if not self.how.fills:
            return value
        rope = {"rope_type": "default", "rope_theta": 1e4}
        if value is None:
            made = {
                "layer_types": ["full_attention"] * self.count or None,
                "mlp_layer_types": ["dense"] + ["sparse"] * (self.count - 1)
                if self.count
                else None,
                "rope_parameters": rope,
            }
            value = made.get(key, copy.deepcopy(NAMES["fill"].get(key)))
        if self.text and key == "rope_parameters" and isinstance(value, dict):
            if not value:
                return {kind: dict(rope) for kind in ("full_attention", "sliding_attention")}
            if "mrope_section" not in value and "rope_type" in value:
                half = int(16 * (value.get("partial_rotary_factor") or 1.0)) // 2
                third = half // 3
                return value | {"mrope_section": [third, third, half - 2 * third]}
        return value


def _kept_layers(own: Mapping[str, Any], layers: int) -> list[int]:
    """Return a few layers that show every kind, over all lists that say something of each."""
    plain = [list(each) for each in own.values() if isinstance(each, list | tuple)]
    lists = [
        each
        for each in plain
        if len(each) == layers
        and each != list(range(layers))
        and all(isinstance(x, str | int | float) for x in each)
    ]
    sets = [set(each) for each in plain if _is_places(each, layers)]
    alike = collections.defaultdict(list)
    for index in range(layers):
        alike[
            tuple(str(each[index]) for each in lists) + tuple(index in each for each in sets)
        ].append(index)
    if len(alike) > 1:
        several = 2 if len(alike) <= 3 else 1
        return sorted(index for each in list(alike.values())[:8] for index in each[:several])
    cycle = max(
        (len(e) for e in plain if e and len(e) < layers and all(isinstance(x, str) for x in e)),
        default=0,
    )
    has_interval = any(
        INTERVALS.search(key) and isinstance(value, int) and value > 1 for key, value in own.items()
    )
    return list(range(min(layers, max(cycle + 1 if cycle else 0, 4 if has_interval else 2))))


def _is_places(value: Any, layers: int) -> bool:
    """Return whether a list names some of the layers."""
    return (
        0 < len(value) < layers
        and all(type(each) is int and 0 <= each < layers for each in value)
        and len(set(value)) == len(value)
    )


def _rope(value: Any, head: int) -> Any:
    """Return rotary settings whose sections and factors fit a small head."""
    if not isinstance(value, dict):
        return value
    new = {key: _rope(each, head) for key, each in value.items()}
    half = max(1, int(head * (new.get("partial_rotary_factor") or 1.0)) // 2)
    if isinstance(sections := new.get("mrope_section"), list | tuple):
        parts = [max(1, half * each // max(1, sum(sections))) for each in sections]
        parts[0] += half - sum(parts)
        new["mrope_section"] = parts
    for key in ("short_factor", "long_factor"):
        if isinstance(new.get(key), list | tuple):
            new[key] = [1.0] * half
    return new
