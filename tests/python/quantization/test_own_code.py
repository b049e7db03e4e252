"""A model that is code of its checkpoint: refused, or run where somebody asks for it."""

import json

import pytest
import torch
from small_models import save_tiny_llama
from transformers import AutoModelForCausalLM

import mlcalib

MODELING = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own-llama-of-a-test"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def ran(tmp_path):
    """A file that is there when the checkpoint's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path, tokenizer, ran):
    folder = save_tiny_llama(tmp_path / "own", tokenizer)
    (folder / "modeling_own.py").write_text(MODELING.format(ran=str(ran)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-llama-of-a-test",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where transformers copies code to before it imports it."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_it_is_not_run_unless_asked_for(folder, ran):
    with pytest.raises(ValueError, match=r"code of the checkpoint.*trust_remote_code=True"):
        mlcalib.quantize(folder, method="rtn", group_size=32, progress=False)
    assert not ran.exists()


def test_it_is_run_and_saved_where_asked_for(folder, ran, tokenizer, tmp_path):
    text = mlcalib.calibration(tokenizer, "en", "sample", tokens=64, seq_len=32)
    quantized = mlcalib.quantize(
        folder, text, bits=8, group_size=32, progress=False, format="dense", trust_remote_code=True
    )
    assert ran.exists()
    assert type(quantized.model).__name__ == "OwnForCausalLM"
    assert quantized.recipe["model"] == str(folder)
    quantized.save(tmp_path / "out")
    assert (tmp_path / "out/modeling_own.py").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, quantized.model(ids).logits, atol=1e-5)
