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
}
SEEING = ["Gemma3", "Llava", "Mistral3", "Mllama", "Qwen2_5_VL", "Qwen3_5", "Voxtral"]
NAMES = [f"{name}ForCausalLM" for names in CLASSES.values() for name in names]
NAMES += [f"{name}ForConditionalGeneration" for name in SEEING]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_quantized_and_read_again(name):
    with torch.random.fork_rng(devices=[]):
        result = examine(name, architectures()[name], lambda _: None)
    assert all(result.get(method) for method in METHODS), result
    assert result["share"] > 0.6  # the rest does not run on text, or is no linear
