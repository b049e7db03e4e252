"""Why no GGUF files are written of classes of transformers that llama.cpp's converter knows.

Found out with transformers 5.24, gguf 0.19 and llama-cpp-python 0.3.36.
"""

_NEWER = "the package gguf 0.19 has no names for its tensors"
_TOKENIZER = "its tokenizer is of a kind of its own in llama.cpp (gemma4)"
_WHY = {
    "BitNetForCausalLM": "its weights are -1, 0 and 1 with a scale for each matrix",
    "ChameleonForConditionalGeneration": (
        "llama.cpp reads no images with it, and not proved for text: its graph forbids tokens 4 to "
        "8195, whatever the vocabulary says"
    ),
    "Cohere2MoeForCausalLM": _NEWER,
    "DeepseekV32ForCausalLM": _NEWER,
    "DeepseekV4ForCausalLM": _NEWER,
    "Dots3NoteForCausalLM": _NEWER,
    "Dots3NoteForConditionalGeneration": _NEWER,
    "FalconH1ForCausalLM": (
        "its graph has the multipliers of the config nowhere but in weights, row by row, and "
        "scales of blocks (float16) do not hold the products"
    ),
    "Gemma4ForCausalLM": _TOKENIZER,
    "Gemma4ForConditionalGeneration": _TOKENIZER,
    "Gemma4UnifiedForConditionalGeneration": _TOKENIZER,
    "Glm5NextForConditionalGeneration": _NEWER,
    "GlmMoeDsaForCausalLM": (
        "its graph wants input and output channels of half of kv_b_proj exchanged (attn_k_b), "
        "which tears blocks of codes"
    ),
    "GPTJForCausalLM": "llama.cpp has names for it, and no graph",
    "GraniteMoeSWAForCausalLM": _NEWER,
    "GraniteSWAForCausalLM": _NEWER,
    "HYV3ForCausalLM": _NEWER,
    "HYV4ForCausalLM": _NEWER,
    "HrmTextForCausalLM": _NEWER,
    "LagunaForCausalLM": _NEWER,
    "MellumForCausalLM": _NEWER,
    "MiniMaxM3SparseForConditionalGeneration": _NEWER,
    "Mistral4ForCausalLM": "llama.cpp's converter reads it from Mistral's own files",
    "MuseGlimmerForConditionalGeneration": _NEWER,
    "PaliGemmaForConditionalGeneration": (
        "the tokens of a prompt see later ones, and not in llama.cpp"
    ),
    "PhimoeForCausalLM": (
        "llama.cpp has other norms (RMS) and another router: logits differ by as much as they are"
    ),
    "Qwen4ExpForCausalLM": _NEWER,
    "Qwen4ExpForConditionalGeneration": _NEWER,
}


def why_not(architecture: str) -> str:
    """Return why a class is not written, in a clause."""
    return _WHY.get(architecture, "llama.cpp's converter knows no class of this name")


def refused_classes() -> dict[str, str]:
    """Return class of transformers → why its files are not written, of those with a reason."""
    return _WHY
