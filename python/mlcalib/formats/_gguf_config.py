"""Hyperparameters of a GGUF file, from transformers' config.

As llama.cpp's converter names them (``set_gguf_parameters`` in ``conversion/base.py``).
"""

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlcalib.formats._gguf_family import GgufFamily

_RMS = ("rms_norm_eps",)
_LAYER_NORM = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_BIASES = ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_YARN = {"beta_fast": 32, "beta_slow": 1}  # what llama.cpp takes
_log = logging.getLogger(__name__)


def head_dim(config: Any) -> int:
    """Return the channels of a head of attention."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def rope(config: Any) -> dict[str, Any]:
    """Return rope_type, rope_theta and what scaling needs, of blocks that see all tokens."""
    given = getattr(config, "rope_parameters", None) or {}
    return {"rope_type": "default", "rope_theta": 10000.0, **given.get("full_attention", given)}


def refusal(config: Any, family: "GgufFamily") -> str | None:
    """Return what of a model llama.cpp does not compute as transformers does, or None."""
    return next(_differences(config, family), None)


def _differences(config: Any, family: "GgufFamily") -> Iterator[str]:
    if getattr(config, "use_sliding_window", False) and not family.slides:
        yield "sliding windows of some blocks"
    layers = set(getattr(config, "layer_types", None) or ())
    if not family.slides and len(layers) > 1 and layers - {"full_attention", *family.kinds}:
        yield f"blocks of several kinds ({', '.join(sorted(layers))})"
    kind = rope(config)["rope_type"]
    if kind not in family.ropes:
        yield f"rope_type {kind!r}"
    if kind == "yarn" and (other := _other_yarn(rope(config))):
        yield f"rope_type 'yarn' with {other}"
    act = _activation(config)
    if act and family.activations is not None and act not in family.activations:
        yield f"the activation {act!r}"
    for option in _BIASES:
        if getattr(config, option, False) and option not in family.biases:
            yield f"biases ({option})"
    if family.head == "tied" and not config.tie_word_embeddings:
        yield "a head of its own"
    if (own := family.unlike(config)) is not None:
        yield own


def _activation(config: Any) -> str | None:
    names = (
        "hidden_activation",
        "hidden_act",
        "mlp_hidden_act",
        "activation_function",
        "activation",
    )
    return next((found for name in names if (found := getattr(config, name, None))), None)


def warn(config: Any) -> None:
    """Say where llama.cpp computes a little else, with its own converter's files too."""
    given = rope(config)
    if given["rope_type"] == "yarn" and given.get("truncate") is False:
        _log.warning(
            "llama.cpp rounds the ends of YaRN's ramp to whole channels, and this model does not "
            "(truncate=False): some positions turn at other speeds there, by a few per cent."
        )
    if len(given.get("mrope_section") or ()) > 3:
        _log.warning(
            "llama.cpp has the position 0 in the fourth of this model's sections for all tokens of "
            "text, and transformers has their positions: the channels that turn slowest do not."
        )
    if _activation(config) == "gelu" or config.model_type == "mpt":
        _log.warning(
            "llama.cpp approximates GELU by tanh, and this model does not: hidden units differ by "
            "up to 0.0005 there."
        )


def hyperparameters(config: Any, family: "GgufFamily") -> dict[str, Any]:
    """Return key, without the architecture's name → value."""
    found: dict[str, Any] = {"block_count": config.num_hidden_layers}
    window = getattr(config, "sliding_window", None) or 0
    length = next(given for name in _LENGTHS if (given := getattr(config, name, None)))
    # Where blocks do not slide in llama.cpp, full attention is the same within the window.
    found["context_length"] = min(length, window) if window and not family.slides else length
    found |= {
        "embedding_length": config.hidden_size,
        "attention.head_count": (heads := getattr(config, "num_attention_heads", 0)),
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
    }
    if (hidden := getattr(config, "intermediate_size", None)) is not None:
        found["feed_forward_length"] = hidden
    for names, key in (
        (_RMS, "attention.layer_norm_rms_epsilon"),
        (_LAYER_NORM, "attention.layer_norm_epsilon"),
    ):
        given = [getattr(config, name) for name in names if hasattr(config, name)]
        found |= {key: float(given[0])} if given else {}
    found["vocab_size"] = config.vocab_size
    if getattr(config, "rope_parameters", None):
        found |= _positions(config)
    if heads and (size := head_dim(config)) * heads != config.hidden_size:
        found |= {"attention.key_length": size, "attention.value_length": size}
    if family.slides and window and "sliding_attention" in config.layer_types:
        slides = [kind == "sliding_attention" for kind in config.layer_types]
        found["attention.sliding_window"] = window
        found["attention.sliding_window_pattern"] = slides
    return found | family.more(config)


def frequency_factors(config: Any) -> "dict[str, np.ndarray[Any, Any]]":
    """Return name of a tensor → what llama.cpp divides each frequency by, float32."""
    given = rope(config)
    if given["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config)}
    if given["rope_type"] == "longrope":
        return {
            f"rope_factors_{name}.weight": np.asarray(given[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    return {}


def _positions(config: Any) -> dict[str, Any]:
    given = rope(config)
    share = given.get("partial_rotary_factor") or 1.0
    found: dict[str, Any] = {
        "rope.dimension_count": int(share * head_dim(config)),
        "rope.freq_base": float(given["rope_theta"]),
    }
    if (local := (config.rope_parameters or {}).get("sliding_attention")) is not None:
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    if sections := given.get("mrope_section"):
        found["rope.dimension_sections"] = [*sections, 0, 0][:4]  # more comes from the family
    kind = given["rope_type"]
    if kind in ("linear", "yarn", "longrope"):
        found["rope.scaling.type"] = kind
    if kind in ("linear", "yarn"):
        found["rope.scaling.factor"] = float(given["factor"])
    if kind in ("yarn", "longrope"):
        found["rope.scaling.original_context_length"] = given["original_max_position_embeddings"]
        found["rope.scaling.attn_factor"] = _attention_factor(config, given)
    return found


def _attention_factor(config: Any, given: dict[str, Any]) -> float:
    """Return what llama.cpp multiplies queries and keys by, beyond what it does for YaRN itself."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, factor = ROPE_INIT_FUNCTIONS[given["rope_type"]](config)
    own = 1 + 0.1 * math.log(given["factor"]) if given["rope_type"] == "yarn" else 1.0
    return float(factor) / own


def _other_yarn(given: dict[str, Any]) -> str:
    other = [
        f"{name}={given[name]}"
        for name, value in _YARN.items()
        if given.get(name) not in (None, value)
    ]
    return ", ".join(other)


def _llama3_factors(config: Any) -> "np.ndarray[Any, Any]":
    given = rope(config)
    size, factor = head_dim(config), given["factor"]
    turned = int((given.get("partial_rotary_factor") or 1.0) * size)
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    length = given["original_max_position_embeddings"]
    turns = length * given["rope_theta"] ** (-np.arange(0, turned, 2) / turned) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors = 1 / ((1 - smooth) / factor + smooth)
    return np.pad(factors, (0, (size - turned) // 2), constant_values=1).astype(np.float32)
