"""All that mlcalib uses of other libraries and they do not promise to keep, in one place.

Tried with transformers 5.17, 5.20, 5.23 and 5.24, lm_eval 0.4.13 and datasets 4.8 to 5.2. Where a
new release of one of them breaks mlcalib, this is the file to repair; a comment in each function
says what in it is not public.

Three classes of mlcalib also override what their bases do inside, and say so: ``_RoomyLayer`` in
``evaluation.tasks.generating`` (the cache of a layer), ``TaskModel`` in ``evaluation.tasks.model``
(lm_eval's ``hf``) and ``PackedQuantizer`` in ``checkpoints.packed.config`` (a reader of
checkpoints). What the modules of a model family are called stands in its adapter, in
``mlcalib.models.families``.

Importing this imports none of them but torch: functions do, when they are called.
"""

import copy
import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mlcalib.common.hub import split_revision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

READERS = "transformers.quantizers.auto"
"""The module that chooses the reader of a quantized checkpoint."""
_READERS_USER = "transformers.modeling_utils"  # took the function when it was imported

HARNESS_MODELS = "lm_eval.models"
"""The module that names the models of lm_eval, which it imports when it needs the first."""

Section = dict[str, Any]
"""The ``quantization_config`` of a config.json."""


def multiplies_bfloat16() -> bool:
    """Return whether torch multiplies bfloat16 many times faster than float32 here: by AMX."""
    # Private.
    return bool(torch.cpu._is_amx_tile_supported())


def causal_architecture(model_type: str) -> str | None:
    """Return the class of a type of causal language models; None for another type."""
    # The table behind AutoModelForCausalLM; public is only that class.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name: str | None = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return name


def auto_class(architecture: str, model_type: str) -> str:
    """Return the class that a user loads a model with: an Auto class of transformers, or its own.

    Args:
        architecture: the model's class.
        model_type: of its config.
    """
    # The tables behind the two classes; public are only these.
    from transformers.models.auto import modeling_auto

    tables = {
        "AutoModelForImageTextToText": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    fits = (name for name, table in tables.items() if table.get(model_type) == architecture)
    return next(fits, architecture)


def config_from(content: Mapping[str, Any]) -> Any:
    """Return the config that the content of a config.json describes."""
    # The table behind AutoConfig, which reads files only; undocumented.
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[content["model_type"]].from_dict(dict(content))


def knows_type(model_type: str) -> bool:
    """Return whether transformers has a config of this ``model_type``."""
    from transformers import CONFIG_MAPPING  # undocumented

    return model_type in CONFIG_MAPPING


def quantization_methods() -> Collection[str]:
    """Return the ``quant_method`` of all checkpoints that transformers has a reader for."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING  # undocumented

    methods: Collection[str] = AUTO_QUANTIZATION_CONFIG_MAPPING
    return methods


def hub_commit(name: str) -> str | None:
    """Return the commit of the hub that a model's config comes from; None where there is none.

    Args:
        name: a model's name on the hub, with ``@REVISION`` or without, of which a config.json is
            fetched; or a folder.

    Raises:
        OSError: there is no such model, or it cannot be reached.
    """
    # Both undocumented; a config knew its commit (_commit_hash) only before 5.20.
    from transformers.utils.hub import cached_file, extract_commit_hash

    place, revision = split_revision(name)
    commit: str | None = extract_commit_hash(cached_file(place, "config.json", **revision), None)
    return commit


def tied_weights(model: "PreTrainedModel") -> Mapping[str, str]:
    """Return name of a weight that the config ties → the one it is tied to."""
    # An undocumented attribute, by the configs of the model and of those inside.
    tied: Mapping[str, str] = model.all_tied_weights_keys
    return tied


def untie(model: "PreTrainedModel", weights: Collection[str]) -> None:
    """Let transformers forget that weights are tied, which are to be held otherwise."""
    tied: Any = model.all_tied_weights_keys  # undocumented
    for target in [key for key, source in tied.items() if {key, source} & set(weights)]:
        del tied[target]


def ties_embeddings(config: Any) -> bool:
    """Return whether a config ties the output embeddings to those of the input.

    Configs of models that see or hear may leave that to the config of their language model.
    """
    # Which of the two has the attribute differs between families.
    own = getattr(config, "tie_word_embeddings", None)
    if own is None:
        own = getattr(config.get_text_config(decoder=True), "tie_word_embeddings", False)
    return bool(own)


def held_ties(model: "PreTrainedModel") -> set[str]:
    """Return the names of weights that share the memory of the one that they are tied to."""
    state = model.state_dict()
    return {
        target
        for target, source in tied_weights(model).items()
        if target in state and state[target].data_ptr() == state[source].data_ptr()
    }


def fill_buffers(model: "PreTrainedModel") -> None:
    """Compute all buffers, as ``from_pretrained`` does with those that no checkpoint holds."""
    from transformers import PreTrainedModel

    owners: dict[str, Any] = {}  # path of a model inside of models → it
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[path] = module
        own = dict(module.named_buffers(recurse=False))
        if any(buffer.is_meta for buffer in own.values()):
            for key, buffer in own.items():
                persistent = key not in module._non_persistent_buffers_set
                empty = torch.empty_like(buffer, device="cpu")
                module.register_buffer(key, empty, persistent=persistent)
            # Private; what from_pretrained calls for a module that was not loaded: of the
            # innermost model around it.
            around = [each for each in owners if not each or f"{path}.".startswith(f"{each}.")]
            owners[max(around, key=len)]._init_weights(module)
    for owner in reversed(owners.values()):  # some fill those of the modules inside
        owner._init_weights(owner)


def forget_quantizer(model: "PreTrainedModel") -> None:
    """Let a model whose weights were dequantized be saved as any other."""
    # Undocumented: the config keeps what the file was, and the model its reader.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None


def remove_hooks(module: "nn.Module") -> None:
    """Remove accelerate's hooks, which move what modules read between devices, if there are any."""
    # accelerate's own name for what it leaves on a module.
    if any(hasattr(each, "_hf_hook") for each in module.modules()):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(module)


def is_offloaded(module: "nn.Module") -> bool:
    """Return whether accelerate brings weights of a module from elsewhere when they are needed."""
    # An attribute of accelerate's AlignDevicesHook; several hooks are one with ``hooks``.
    for each in module.modules():
        hook = getattr(each, "_hf_hook", None)
        if any(getattr(one, "offload", False) for one in getattr(hook, "hooks", [hook])):
            return True
    return False


def fused_experts(module: nn.Module) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]] | None:
    """Return what transformers 5 keeps of all experts of a block; None where it is kept otherwise.

    Returns:
        gate_up_proj [experts, 2 · intermediate, hidden], down_proj [experts, hidden, intermediate],
        and the activation.
    """
    # Names and layout are those of the models' code.
    names = ("gate_up_proj", "down_proj", "act_fn")
    gate_up, down, activation = (getattr(module, name, None) for name in names)
    if not (isinstance(gate_up, Tensor) and isinstance(down, Tensor) and callable(activation)):
        return None
    return (gate_up, down, activation) if gate_up.shape[1] == 2 * down.shape[2] else None


class ExpertsInterface(NamedTuple):
    """What transformers' interface says of fused experts.

    Attributes:
        transposed: whether weights are [experts, in, out].
        concatenated: whether gate and up stand one after the other in their rows.
        gate: whether there is a gate.
        bias: whether there are biases.
        activate: gives the input of the last linear, of what the fused first one gives.
        norm: applied to what an expert gives; None for none.
    """

    transposed: bool
    concatenated: bool
    gate: bool
    bias: bool
    activate: Callable[[Tensor], Tensor]
    norm: nn.Module | None


def experts_interface(module: nn.Module) -> ExpertsInterface | None:
    """Return what transformers' experts interface says of a module; None for another module."""
    # What its decorator sets and the gate's method are undocumented (integrations.moe).
    held: Any = module
    flags = ("is_transposed", "is_concatenated", "has_gate", "has_bias")
    described = all(hasattr(held, name) for name in flags)
    if not (described and isinstance(getattr(held, "down_proj", None), Tensor)):
        return None
    shell = copy.copy(held)  # what the gate reads of it: settings, and no weights
    shell._parameters = {}
    has_norm = getattr(held, "has_post_expert_norm", False)  # older releases have none
    return ExpertsInterface(
        transposed=held.is_transposed,
        concatenated=held.is_concatenated,
        gate=held.has_gate,
        bias=held.has_bias,
        activate=shell._apply_gate if held.has_gate else shell.act_fn,
        norm=held.post_expert_norm if has_norm else None,
    )


def language_tokens(tokenizer: "PreTrainedTokenizerBase") -> Mapping[str, int]:
    """Return the language tokens that a tokenizer keeps apart from its vocabulary, as M2M100's."""
    # An undocumented attribute of that tokenizer.
    tokens: Mapping[str, int] = getattr(tokenizer, "lang_token_to_id", {})
    return tokens


def cache_name() -> str:
    """Return what models call their cache, as an argument and in their output."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    # Renamed in 5.24, where the other name is deprecated.
    renamed = "cache" in CausalLMOutputWithPast.__dataclass_fields__
    return "cache" if renamed else "past_key_values"


def cache_of(layer: type) -> Any:
    """Return an empty cache that keeps what each layer of a model attends to in a ``layer``."""
    from transformers import Cache

    # An argument that only transformers' own caches give.
    return Cache(layer_class_to_replicate=layer)


def cache_layer() -> type:
    """Return the class that keeps all of a layer's keys and values; a base for others.

    It has ``keys`` and ``values`` [rows, heads, tokens, channels], ``get_seq_length()``,
    ``lazy_initialization(keys, values)`` before the first of them, ``update(keys, values, …)``,
    which takes more and returns all, and ``batch_select_indices(rows)``.
    """
    # Undocumented but for its name.
    from transformers import DynamicLayer

    layer: type = DynamicLayer
    return layer


def before_reader(choose: Callable[[Any, Any, Any], Section | None]) -> None:
    """Ask ``choose`` which section a quantized checkpoint is read by; READERS is imported.

    Args:
        choose: called with the model's config, the ``quantization_config`` that ``from_pretrained``
            was given, or None, and the device map. Returns None to leave all as it is.
    """
    # Private: from_pretrained calls it before anything is loaded, and there is no hook in it.
    module = sys.modules[READERS]
    original = module.get_hf_quantizer

    @functools.wraps(original)
    def get_hf_quantizer(
        config: Any, quantization_config: Any, device_map: Any, *rest: Any, **named: Any
    ) -> Any:
        section = choose(config, quantization_config, device_map)
        if section is not None:
            config.quantization_config, quantization_config = section, None
        return original(config, quantization_config, device_map, *rest, **named)

    for user in (module, sys.modules.get(_READERS_USER)):
        if getattr(user, "get_hf_quantizer", None) is original:
            user.get_hf_quantizer = get_hf_quantizer  # type: ignore[union-attr]


def their_reader(section: Section, device_map: Any) -> Any:
    """Return the reader that transformers has for a quantized checkpoint."""
    # As get_hf_quantizer makes it, which is private.
    from transformers.quantizers import AutoHfQuantizer

    reader = AutoHfQuantizer.from_config(section, pre_quantized=True)
    reader.validate_environment(device_map=device_map, weights_only=True)
    return reader


def is_distributed(config: Any) -> bool:
    """Return whether ``from_pretrained`` was asked to spread the model over several devices."""
    # Undocumented: it keeps the request in the config.
    return getattr(config, "distributed_config", None) is not None


def expect_unread(model: "PreTrainedModel", names: str) -> None:
    """Let no warning be given of tensors (a regular expression) that the model has no place for."""
    # Private.
    known = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = known | {names}


def register_harness_model(name: str, target: str) -> None:
    """Let lm_eval know a model by a name.

    Args:
        name: of the model.
        target: its class, ``MODULE:CLASS``, which is imported when it is asked for.
    """
    # Documented is only the decorator of a class that is imported already.
    from lm_eval.api.registry import model_registry

    model_registry.register(name, target=target)


def harness_command() -> None:
    """Run lm_eval's command."""
    # What its script calls.
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def read_task_file(folder: str | Path) -> dict[str, Any]:
    """Return what the one task file in a folder says, with all that it includes."""
    from lm_eval.tasks import TaskManager

    # Entries of the index are undocumented.
    index = TaskManager(include_path=str(folder), include_defaults=False).task_index
    content: dict[str, Any] = next(entry.cfg for entry in index.values() if entry.cfg)
    return content


def run_task_files(
    lm: Any, folder: str | Path, names: Sequence[str], limit: int | None
) -> dict[str, list[dict[str, Any]]]:
    """Run tasks whose files are in a folder; return of each what lm_eval records per item."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    # Both undocumented: loading by names alone, and what evaluate takes and gives.
    found = lm_eval.evaluate(
        lm=lm, task_dict=manager.load(list(names)), limit=limit, bootstrap_iters=0, log_samples=True
    )
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return samples


@contextmanager
def no_task_bars() -> Iterator[None]:
    """Keep lm_eval from showing a bar of milliseconds for each task that it prepares."""
    from lm_eval.api import task

    # It asks nobody whether to show one.
    tqdm = task.tqdm
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        task.tqdm = tqdm
