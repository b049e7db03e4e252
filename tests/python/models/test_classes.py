"""Classes of transformers that show every mechanism: found, quantized, and read again.

``make sweep`` does the same for all of them.
"""

import pytest
import torch
from examine import METHODS, examine, logits, running_model
from small_tokenizer import make_tokenizer
from tiny_architectures import architectures

import mlcalib
from mlcalib.checkpoints.packed import load_to_run
from mlcalib.models.loading import load_model

CLASSES = {
    "fused q, k and v": ["Bloom", "Falcon", "GPTNeoX", "Mpt"],
    "fused gate and up": ["Glm", "Phi3"],
    "other norms, biases and activations": ["Nemotron", "OPT", "Phi", "StableLm", "Starcoder2"],
    "scaled and mixed blocks": ["Gemma3", "Granite", "SmolLM3", "XGLM"],
    "low-rank attention": ["DeepseekV2", "DeepseekV3", "KimiLinear"],
    "sparse indexers": ["DeepseekV32", "DeepseekV4", "GlmMoeDsa"],
    "recurrent and linear attention": ["Bamba", "FalconMamba", "Jamba", "Lfm2", "Mamba2"],
    "linear attention beside experts": ["NemotronH", "Qwen3Next"],
    "experts": ["Ernie4_5_Moe", "Glm4Moe", "GptOss", "GraniteMoe", "JetMoe", "MiniMaxM2", "Phimoe"],
    "shared keys and values": ["Gemma3n", "Gemma4"],
    "cross attention that does not run": ["Bart"],
    "numbers that are no parameters, but in files": ["Apertus"],
    "numbers in no file, which the model computes": ["FalconH1"],
    "weights that a class makes on the CPU, whatever is asked": ["DiffLlama"],
    "blocks that the model changes before they run": ["BigBird"],
    "blocks that share weights": ["Zamba2"],
}
SEEING = [
    "Blip2",
    "Gemma3",
    "Llama4",
    "Llava",
    "Mistral3",
    "Mllama",
    "Qwen2_5_VL",
    "Qwen3_5",
    "Voxtral",
]
NAMES = [f"{name}ForCausalLM" for names in CLASSES.values() for name in names]
NAMES += [f"{name}ForConditionalGeneration" for name in SEEING]
NAMES += ["GPT2LMHeadModel", "ReformerModelWithLMHead"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_quantized_and_read_again(name):
    with torch.random.fork_rng(devices=[]):
        result = examine(name, architectures()[name], lambda _: None)
    assert all(result.get(method) for method in METHODS), result
    assert result["share"] > 0.6  # the rest does not run on text, or is no linear


def test_a_model_that_sees_is_loaded_to_be_evaluated(tmp_path):
    name = "Mistral3ForConditionalGeneration"  # AutoModelForCausalLM does not know its config
    ids = torch.arange(24)[None] * 5 % 120
    with torch.random.fork_rng(devices=[]):
        model = running_model(name, architectures()[name], ids, {})
    model.save_pretrained(tmp_path / "float")
    make_tokenizer().save_pretrained(tmp_path / "float")
    again = load_model(str(tmp_path / "float"))
    assert type(again) is type(model)
    assert logits(again, ids).equal(logits(model, ids))
    options = {"method": "rtn", "group_size": 16, "format": "gptq", "progress": False}
    ours = mlcalib.quantize(model, tokenizer=make_tokenizer(), **options)
    ours.save(tmp_path / "gptq")
    packed = load_to_run(str(tmp_path / "gptq"))
    assert type(packed) is type(model)
    torch.testing.assert_close(logits(packed, ids), logits(ours.model, ids), rtol=0, atol=1e-3)
