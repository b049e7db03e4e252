"""Checkpoints whose config another tool wrote."""

import json

import pytest
from test_checking import SPEC
from test_conversion import saved

import mlcalib

SECTIONS = {
    "awq": {
        "quant_method": "awq",
        "w_bit": 4,
        "q_group_size": 32,
        "zero_point": True,
        "version": "GEMM",
        "modules_to_not_convert": None,
    },
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": True,
        "sym": True,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["gptqmodel:7.7.0"]},
        "lm_head": False,
    },
}


@pytest.mark.parametrize("form", sorted(SECTIONS))
def test_a_section_of_other_tools_is_read(form, tmp_path):
    """Keys as AutoAWQ and GPTQModel write them; transformers before 5 said torch_dtype."""
    saved(tmp_path / "in", form, SPEC)
    path = tmp_path / "in/config.json"
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config | {"quantization_config": SECTIONS[form]}))
    assert mlcalib.check(tmp_path / "in").findings == ()
