"""Classes of transformers that show every mechanism: found, quantized, and read again.

``make sweep`` does the same for all of them.
"""

import pytest
import torch
from examine import METHODS, examine
from tiny_architectures import architectures

CLASSES = {
    "fused q, k and v": ["Bloom", "Falcon", "GPTNeoX", "Mpt"],
    "fused gate and up": ["Glm", "Phi3"],
    "other norms, biases and activations": ["Nemotron", "OPT", "Phi", "StableLm", "Starcoder2"],
    "scaled and mixed blocks": ["Gemma3", "Granite", "SmolLM3", "XGLM"],
    "low-rank attention": ["DeepseekV2", "DeepseekV3", "KimiLinear"],
    "sparse indexers": ["DeepseekV32", "DeepseekV4", "GlmMoeDsa"],
    "recurrent and linear attention": ["Bamba", "FalconMamba", "Jamba", "Lfm2", "Mamba2"],
    "linear attention beside experts": ["NemotronH", "Qwen3Next"],
    "experts": ["Ernie4_5_Moe", "Glm4Moe", "GptOss", "GraniteMoe", "MiniMaxM2", "Phimoe"],
    "shared keys and values": ["Gemma3n", "Gemma4"],
    "cross attention that does not run": ["Bart"],
    "numbers that are no parameters, but in files": ["Apertus"],
    "numbers in no file, which the model computes": ["FalconH1"],
    "weights that a class makes on the CPU, whatever is asked": ["DiffLlama"],
    "blocks that the model changes before they run": ["BigBird"],
    "blocks that share weights": ["Zamba2"],
}
SEEING = ["Blip2", "Gemma3", "Llama4", "Llava", "Mistral3", "Mllama", "Qwen2_5_VL", "Qwen3_5", "Voxtral"]
NAMES = [f"{name}ForCausalLM" for names in CLASSES.values() for name in names]
NAMES += [f"{name}ForConditionalGeneration" for name in SEEING]
NAMES += ["GPT2LMHeadModel", "ReformerModelWithLMHead"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_quantized_and_read_again(name):
    with torch.random.fork_rng(devices=[]):
        result = examine(name, architectures()[name], lambda _: None)
    assert all(result.get(method) for method in METHODS), result
    # The rest does not run on text, is no linear, or is what several blocks share.
    assert result["share"] > (0.4 if name.startswith("Zamba2") else 0.6)
