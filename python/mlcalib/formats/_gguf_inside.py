"""Language models inside of models that see or hear.

A file holds the language model alone; what llama.cpp sees with lies in a file of its own (mmproj).
"""

import copy
from typing import Any

_INSIDE = (
    "AyaVisionForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration",
    "DeepseekVLForConditionalGeneration",
    "DeepseekVLHybridForConditionalGeneration",
    "Exaone4_5_ForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "GotOcr2ForConditionalGeneration",
    "Idefics2ForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "JanusForConditionalGeneration",
    "Kimi_K25ForConditionalGeneration",
    "Lfm2VlForConditionalGeneration",
    "LightOnOcrForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "MiniCPMV4_6ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Ovis2ForConditionalGeneration",
    "QianfanOCRForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "VideoLlama3ForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
    "VoxtralForConditionalGeneration",
)
"""Classes whose language model computes what the class of its config computes."""
_AS_THEY_ARE = ("aya_vision", "cohere2_vision")
"""Types of models whose logits are not multiplied by their language model's ``logit_scale``."""
PARTS = ("language_model.", "text_model.")
"""What the names of the language model's tensors have that those of its class have not."""


def language_class(config: Any, architecture: str) -> str:
    """Return the class of the language model inside of a model, or the model's own."""
    if architecture not in _INSIDE:
        return architecture
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    found = CAUSAL.get(config.get_text_config().model_type)
    return found if isinstance(found, str) else architecture


def language_config(config: Any) -> Any:
    """Return the config of the language model inside, or the model's own.

    Whether the head is tied to the embeddings is said by that of the whole model.
    """
    text = config.get_text_config()
    if text is config:
        return config
    text = copy.copy(text)
    if hasattr(text, "allow_global_per_layer_attribute_access"):
        text.allow_global_per_layer_attribute_access = True  # families ask for heads of each kind
    said = [each for each in (config, text) if hasattr(each, "tie_word_embeddings")]
    text.tie_word_embeddings = bool(said and said[0].tie_word_embeddings)
    if config.model_type in _AS_THEY_ARE:
        text.logit_scale = 1.0
    return text


def inside_classes() -> tuple[str, ...]:
    """Return the classes whose files are those of the language model inside."""
    return _INSIDE


def is_language(name: str) -> bool:
    """Return whether a tensor of a model that sees or hears is the language model's."""
    return name.startswith("lm_head.") or any(part in name for part in PARTS)
