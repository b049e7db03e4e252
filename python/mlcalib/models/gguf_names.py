"""What llama.cpp calls the architectures of classes without a family file.

As its converters register them (``@ModelBase.register`` in ``convert_hf_to_gguf.py``, later in
``conversion``), of those whose converter leaves the inputs of linears in their order. It is enough
to name tensors, and so for importance matrices; whole files are written of families with a file.
"""

from mlcalib.models.base import GgufArchitecture

_NAMES = {
    "ApertusForCausalLM": "apertus",
    "ArceeForCausalLM": "arcee",
    "BambaForCausalLM": "granitehybrid",
    "BloomForCausalLM": "bloom",
    "Cohere2ForCausalLM": "cohere2",
    "Dots1ForCausalLM": "dots1",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "Ernie4_5_MoeForCausalLM": "ernie4_5-moe",
    "Exaone4ForCausalLM": "exaone4",
    "FalconForCausalLM": "falcon",
    "FalconH1ForCausalLM": "falcon-h1",
    "FalconMambaForCausalLM": "mamba",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "starcoder",
    "GPTNeoXForCausalLM": "gptneox",
    "GemmaForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Gemma3nForCausalLM": "gemma3n",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4moe",
    "GptOssForCausalLM": "gpt-oss",
    "GraniteForCausalLM": "granite",
    "HunYuanDenseV1ForCausalLM": "hunyuan-dense",
    "HunYuanMoEV1ForCausalLM": "hunyuan-moe",
    "Lfm2ForCausalLM": "lfm2",
    "Lfm2MoeForCausalLM": "lfm2moe",
    "Llama4ForConditionalGeneration": "llama4",
    "LlavaForConditionalGeneration": "llama",
    "MambaForCausalLM": "mamba",
    "Mamba2ForCausalLM": "mamba2",
    "MiniMaxM2ForCausalLM": "minimax-m2",
    "MptForCausalLM": "mpt",
    "NemotronForCausalLM": "nemotron",
    "Olmo3ForCausalLM": "olmo2",
    "OlmoForCausalLM": "olmo",
    "OlmoeForCausalLM": "olmoe",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi2",
    "PhimoeForCausalLM": "phimoe",
    "Qwen2VLForConditionalGeneration": "qwen2vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2vl",
    "Qwen3VLForConditionalGeneration": "qwen3vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3vlmoe",
    "SeedOssForCausalLM": "seed_oss",
    "SmolLM3ForCausalLM": "smollm3",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
    "VoxtralForConditionalGeneration": "llama",
}


def named_architecture(architecture: str) -> dict[str, GgufArchitecture]:
    """Return a class of transformers → its architecture in GGUF; nothing of an unknown one."""
    known = _NAMES.get(architecture)
    return {} if known is None else {architecture: GgufArchitecture(known)}
