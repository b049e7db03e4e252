"""config.json: values that a model can have, and keys that readers know."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

_LIMITS = {
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**26,
    "max_position_embeddings": 2**40,
}
_GPTQ_KEYS = {
    "quant_method", "bits", "group_size", "desc_act", "sym", "lm_head", "checkpoint_format",
    "format", "pack_dtype", "true_sequential", "damp_percent", "damp_auto_increment", "meta",
    "dynamic", "modules_in_block_to_quantize", "static_groups", "act_group_aware", "backend",
    "block_name_to_quantize", "model_seqlen", "tokenizer", "dataset",
    "module_name_preceding_first_block", "batch_size", "pad_token_id", "max_input_length",
    "cache_block_outputs", "model_name_or_path",
    "model_file_base_name", "use_exllama", "exllama_config", "disable_exllama", "is_marlin_format",
    "use_cuda_fp16", "autoround_version", "mse", "offload_to_disk", "adapter", "rotation", "method",
}  # fmt: skip
_AWQ_KEYS = {
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "zero_point", "version",
    "format", "modules_to_not_convert", "lm_head", "backend", "do_fuse", "fuse_max_seq_len", "sym",
    "desc_act",
    "modules_to_fuse", "exllama_config", "meta", "pack_dtype", "dynamic", "checkpoint_format",
}  # fmt: skip


def check_config(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield values of config.json that no model has."""
    for key, limit in _LIMITS.items():
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= limit:
            yield f"config.json has {key} {value!r}; expected a whole number of 1 to {limit}"
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        yield f"config.json has architectures {architectures!r}; expected the model's class"
    if config.get("auto_map"):
        yield (
            "config.json has an auto_map: readers would need trust_remote_code; its code was not "
            "run, remove the key if transformers knows the architecture"
        )


def check_section(
    method: str, section: Mapping[str, Any]
) -> Iterator[tuple[Literal["error", "warning"], str]]:
    """Yield what is wrong in a ``quantization_config``."""
    if method.startswith("compressed-tensors"):
        yield from _check_compressed_tensors(section)
        return
    known = {"gptq": _GPTQ_KEYS, "awq": _AWQ_KEYS}[method]
    if strange := sorted(set(section) - known):
        yield (
            "warning",
            f"quantization_config has keys that readers do not know: {', '.join(strange)}",
        )
    for keys, low, high in ((("bits", "w_bit"), 2, 8), (("group_size", "q_group_size"), 1, 2**20)):
        value = next((section[key] for key in keys if key in section), None)
        whole = type(value) is int and low <= value <= high
        if not whole and not (value == -1 and low == 1):
            yield "error", f"quantization_config has {keys[0]} {value!r}"
    wanted = {"gptq": ("desc_act", "sym"), "awq": ("zero_point",)}[method]
    for key in wanted:
        if not isinstance(section.get(key), bool):
            value = section.get(key)
            yield "error", f"quantization_config has {key} {value!r}; vLLM needs true or false"


def _check_compressed_tensors(
    section: Mapping[str, Any],
) -> Iterator[tuple[Literal["error", "warning"], str]]:
    """Ask the library itself, whose schemes forbid unknown keys."""
    from compressed_tensors.quantization import QuantizationConfig

    try:
        QuantizationConfig.model_validate(dict(section))
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        yield "error", f"compressed-tensors refuses the quantization_config: {told[:500]}"
