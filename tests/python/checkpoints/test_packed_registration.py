"""``from_pretrained`` after ``register_packed()``: packed on the CPU, and who gets what else."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from foreign_reader import from_transformers
from safetensors.torch import load_file, save_file
from small_models import tiny_llama, tiny_model
from test_packed import IDS, packed_names, quantize
from transformers import AutoModel, AutoModelForCausalLM, GPTQConfig, LlamaConfig

import mlcalib
from mlcalib._core import GridSpec, rtn
from mlcalib.checkpoints import save_checkpoint
from mlcalib.checkpoints.packed.config import packed_section
from mlcalib.formats import formats
from mlcalib.models import find_adapter
from mlcalib.models.experts import unfuse

HALF = torch.float16
FORMS = ["compressed-tensors", "gptq", "awq"]


pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def save(tokenizer, tmp_path):
    def save(name, model=None, spec=None):
        model = model or tiny_llama(dtype=HALF)
        spec = spec or GridSpec(4, 32, name == "gptq", scale_dtype=HALF)
        quantized = quantize(model, spec)
        form = formats.get(name)()
        save_checkpoint(model, tokenizer, tmp_path / name, form, quantized, {"a": 1})
        return tmp_path / name

    return save


SCRIPT = """
import sys
import torch
import {first}
import {second}
mlcalib.register_packed()
mlcalib.register_packed()
from transformers import AutoModelForCausalLM
assert {first}.__version__ and {second}.__version__
ids = torch.arange(40)[None] * 3 % 128
for folder in sys.argv[1:]:
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.equal(found, mlcalib.load(folder)(ids).logits), folder
print("the same")
"""


@pytest.mark.parametrize("order", [("mlcalib", "transformers"), ("transformers", "mlcalib")])
def test_from_pretrained_gives_what_load_gives_in_either_order(order, save):
    folders = [str(save(name)) for name in FORMS]
    first, second = order
    script = SCRIPT.format(first=first, second=second)
    if first == "transformers":  # the module that is wrapped, too
        script = f"import transformers.modeling_utils\n{script}"
    out = subprocess.run(
        [sys.executable, "-c", script, *folders], capture_output=True, text=True, check=False
    )
    assert out.stdout == "the same\n", out.stderr


UNTOUCHED = """
import transformers.modeling_utils
from transformers.quantizers import auto
before = auto.get_hf_quantizer
import sys
import mlcalib
from mlcalib.checkpoints.packed import load_to_run
print(type(load_to_run(sys.argv[1]).model.layers[0].mlp.up_proj).__name__)
print(auto.get_hf_quantizer is before, transformers.modeling_utils.get_hf_quantizer is before)
mlcalib.register_packed()
once = auto.get_hf_quantizer
mlcalib.register_packed()
print(once is not before, auto.get_hf_quantizer is once)
"""


def test_only_asking_changes_transformers(save):
    out = subprocess.run(
        [sys.executable, "-c", UNTOUCHED, save("gptq")], capture_output=True, text=True, check=False
    )
    assert out.stdout.split() == ["PackedLinear", "True", "True", "True", "True"], out.stderr


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("mlcalib")]


@pytest.mark.parametrize("name", FORMS)
def test_weights_stay_packed_and_it_is_said_once(name, save, caplog):
    folder = save(name)
    with caplog.at_level(logging.INFO, "mlcalib"):
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    assert len(packed_names(loaded)) == 14
    assert told(caplog) == [f"{folder} is read by mlcalib: its weights stay packed"]
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, mlcalib.load(folder)(IDS).logits)


def test_a_config_of_transformers_asks_for_its_reader(save, caplog):
    with caplog.at_level(logging.INFO, "mlcalib"):
        assert not packed_names(from_transformers(save("compressed-tensors")))
        with (
            pytest.warns(UserWarning, match="already has a `quantization_config`"),
            pytest.raises(ImportError, match="requires optimum"),
        ):
            AutoModelForCausalLM.from_pretrained(
                save("gptq"), quantization_config=GPTQConfig(bits=4)
            )
    assert not told(caplog)


def config_with(section):
    return LlamaConfig(quantization_config=section, name_or_path="x")


@pytest.mark.parametrize(
    ("device_map", "gpu", "packed"),
    [
        (None, True, True),
        ({"": torch.device("cpu")}, True, True),
        ("auto", False, True),
        ("auto", True, False),
        ({"": torch.device("cuda:0")}, True, False),
        ({"": 0}, True, False),
        ({"model": "cpu", "lm_head": "disk"}, False, False),
    ],
)
def test_only_what_goes_to_the_cpu_is_packed(device_map, gpu, packed, monkeypatch, caplog):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    config = config_with({"quant_method": "gptq", "bits": 4})
    with caplog.at_level(logging.INFO, "mlcalib"):
        assert (packed_section(config, None, device_map) is not None) == packed
    assert ("run on the CPU" in told(caplog)[0]) == (not packed)


def test_other_methods_and_models_are_none_of_our_business():
    assert packed_section(LlamaConfig(), None, None) is None
    assert packed_section(config_with({"quant_method": "fp8"}), None, None) is None
    config = config_with({"quant_method": "gptq", "bits": 4})
    assert packed_section(config, GPTQConfig(bits=4), None) is None


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"config_groups": {"W4A16": ["Linear"]}}, "a name in compressed-tensors"),
        ({"config_groups": {"a": {"output_activations": {"num_bits": 8}}}}, "activations are"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "cache is quantized"),
    ],
)
def test_what_only_transformers_does_is_left_to_it(own, reason, caplog):
    config = config_with({"quant_method": "compressed-tensors", **own})
    with caplog.at_level(logging.INFO, "mlcalib"):
        assert packed_section(config, None, None) is None
    assert reason in told(caplog)[0]


def test_rounded_activations_are_left_to_transformers(save, caplog):
    spec = GridSpec(8, -1, True, scale_dtype=HALF)
    folder = save("compressed-tensors-int8", spec=spec)
    with caplog.at_level(logging.INFO, "mlcalib"):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert not packed_names(loaded)
    assert ["its activations are quantized too" in text for text in told(caplog)] == [True]


def test_a_model_without_its_head_stays_packed(save):
    """Its names are others than those in the checkpoint."""
    folder = save("compressed-tensors")
    body = AutoModel.from_pretrained(folder)
    assert "layers.0.mlp.down_proj" in packed_names(body)
    with torch.no_grad():
        expected = mlcalib.load(folder).model(IDS).last_hidden_state
        assert torch.equal(body(IDS).last_hidden_state, expected)


def test_channels_in_another_order_go_to_transformers(save, caplog):
    folder = save("gptq")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("1.mlp.down_proj.g_idx"):
            tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO, "mlcalib"), pytest.raises(ImportError, match="optimum"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert "down_proj.g_idx puts channels" in told(caplog)[1]
    with pytest.raises(ValueError, match="g_idx puts channels"):
        mlcalib.load(folder)


def test_experts_of_which_some_are_packed_go_to_transformers(save, tokenizer, tmp_path, caplog):
    model = tiny_model("qwen3_moe", dtype=HALF)
    adapter = find_adapter(type(model).__name__)
    unfuse(model, adapter)
    spec = GridSpec(4, 16, True, scale_dtype=HALF)
    quantized = {
        name: rtn(linear.weight.detach(), spec)
        for name, linear in adapter.named_linears(model)
        if ".experts.2." not in name
    }
    folder, form = tmp_path / "experts", formats.get("gptq")()
    save_checkpoint(model, tokenizer, folder, form, quantized, {"a": 1}, saved=adapter.saved)
    with caplog.at_level(logging.INFO, "mlcalib"), pytest.raises(ImportError, match="optimum"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert "after all: some experts are packed and others" in told(caplog)[1]


def test_trivial_groups_are_packed_whatever_desc_act_says(save):
    folder = save("gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (folder / "config.json").write_text(json.dumps(config))
    assert len(packed_names(AutoModelForCausalLM.from_pretrained(folder))) == 14
