"""Whole, but not for everybody: three kinds of findings, and which readers they concern."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import tiny_llama
from test_checking import HALF, SPEC, change, edit, kinds
from test_conversion import all_same, saved

import mlcalib
from mlcalib._core import GridSpec
from mlcalib.checkpoints import load_quantized
from mlcalib.formats import READERS, Facts, formats


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "in", "gptq", SPEC)
    return tmp_path / "in"


@pytest.fixture
def plain(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def doubled(folder, layers):
    state = load_file(folder / "model.safetensors")
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in layers]
    change(folder, **{name: torch.cat([state[name]] * 2) for name in names})


def test_sizes_for_each_layer_are_no_damage(plain):
    edit(plain, intermediate_size=[128, 128])
    assert "a value for each layer" in kinds(plain)["unread"]
    readers = mlcalib.check(plain).readers
    assert [verdict.loads for verdict in readers.values()] == [None, None, None, False]
    edit(plain, architectures=["DeciLMForCausalLM"])  # of which nothing is known
    assert kinds(plain) == {}
    edit(plain, intermediate_size=[128, -1])
    assert "[128, -1]; expected a whole number" in kinds(plain)["damaged"]


def test_a_projection_that_is_another_in_every_layer_is_no_damage(plain):
    doubled(plain, [0, 1])
    found = kinds(plain)
    assert found.keys() == {"unread"}
    assert "q_proj.weight has shape [128, 64], but config.json says [64, 64]" in found["unread"]
    assert mlcalib.check(plain).readers["vLLM"].loads is None


def test_a_projection_that_is_odd_in_one_layer_is_damaged(plain):
    doubled(plain, [1])
    assert "layers.1.self_attn.q_proj" in kinds(plain)["damaged"]


def test_of_families_that_are_not_known_nothing_is_claimed(plain):
    doubled(plain, [1])
    edit(plain, architectures=["NewForCausalLM"], num_hidden_layers=7, tie_word_embeddings=False)
    assert kinds(plain) == {}


def test_layers_for_multi_token_prediction_are_a_note(plain):
    change(plain, **{"model.layers.2.eh_proj.weight": torch.ones(64, 128)})
    assert "tensors of layer 2" in kinds(plain)["damaged"]
    edit(plain, num_nextn_predict_layers=1)
    report = mlcalib.check(plain)
    assert report.findings == ()
    assert "multi-token prediction" in report.notes[0]


def permuted(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    for name in [name for name in state if name.endswith(".g_idx")]:
        state[name] = state[name][torch.randperm(len(state[name]))].contiguous()
    save_file(state, path, {"format": "pt"})
    edit(folder, section=True, desc_act=True)


def test_channels_in_another_order_are_no_damage(folder):
    permuted(folder)
    report = mlcalib.check(folder)
    (finding,) = report.findings
    assert finding.kind == "unread"
    assert "another order" in finding.message
    assert "13 more linears" in finding.message
    assert [verdict.loads for verdict in report.readers.values()] == [True, True, True, False]
    assert report.status == 3
    name = "model.layers.0.mlp.down_proj.g_idx"
    change(folder, **{name: torch.full((128,), 9, dtype=torch.int32)})
    assert "names groups 9 to 9, but there are 4" in kinds(folder)["damaged"]


def test_a_section_in_a_file_of_its_own(folder, tmp_path):
    before = load_quantized(folder)
    config = json.loads((folder / "config.json").read_text())
    section = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    for key in ("quant_method", "meta", "pack_dtype"):  # what AutoGPTQ did not write
        section.pop(key)
    (folder / "quantize_config.json").write_text(json.dumps(section))
    report = mlcalib.check(folder)
    assert (report.method, report.linears, report.status) == ("gptq", 14, 4)
    assert "quantize_config.json" in report.readers["transformers"].reasons[0]
    assert "--quantization gptq" in report.readers["vLLM"].reasons[0]
    assert all_same(load_quantized(folder), before)
    mlcalib.convert(folder, tmp_path / "out", "awq")
    assert all_same(load_quantized(tmp_path / "out"), before)
    assert mlcalib.load(folder)(torch.arange(4)[None]).logits.isfinite().all()


def test_other_files_and_keys_with_sections(folder):
    config = json.loads((folder / "config.json").read_text())
    section = config.pop("quantization_config")
    (folder / "quantize_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"compression_config": section}))
    assert mlcalib.check(folder).method == "gptq"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert "does not know the layout 'modelopt'" in kinds(folder)["unread"]


@pytest.mark.parametrize(
    "section",
    [{"quant_method": "fp8"}, {"quant_method": "compressed-tensors", "format": "naive-quantized"}],
)
def test_what_is_dequantized_when_read_is_a_note(plain, section):
    edit(plain, quantization_config=section)
    report = mlcalib.check(plain)
    assert (report.status, report.readers["vLLM"].loads) == (0, None)
    assert "dequantized when a model is read" in report.notes[0]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"dtype": "float64"}, "unread"),
        ({"dtype": None}, "unread"),
        ({"dtype": "int4"}, "damaged"),
        ({"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModel": "own.X"}}, "unread"),
    ],
)
def test_what_only_mlcalib_cannot_read(folder, changes, kind):
    edit(folder, **changes)
    assert kinds(folder).keys() == {kind}


def test_code_that_nobody_needs_is_a_note(folder):
    edit(folder, auto_map={"AutoModel": "own.X"})
    report = mlcalib.check(folder)
    assert report.status == 0
    assert "need no trust_remote_code" in report.notes[0]


@pytest.mark.parametrize(
    ("dtype", "size", "loads"),
    [
        (torch.bfloat16, 16, False),
        (torch.float16, 16, True),
        (torch.float32, 16, True),
        (torch.bfloat16, 32, True),
    ],
)
def test_awq_kernels_have_dtypes(dtype, size, loads):
    """``AWQConfig.get_supported_act_dtypes`` is float16 alone, that of awq_marlin both."""
    section = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    specs = {"a": GridSpec(4, size, scale_dtype=torch.float16)}
    found = formats.get("awq")().verdicts(Facts(section, specs, {"a": (64, 128)}, dtype))
    assert (found["vLLM"].loads, found["SGLang"].loads) == (loads, loads)
    assert any("--dtype float16" in why for why in found["vLLM"].reasons) == (
        size == 16 and dtype != torch.float16
    )


def test_refusals_name_reader_and_version(tmp_path):
    saved(tmp_path / "in", "gptq", GridSpec(4, 32, False, scale_dtype=HALF))
    refused = kinds(tmp_path / "in")["refused"]
    assert f"vLLM {READERS['vLLM']}: GPTQ is symmetric" in refused


def test_files_that_are_no_model_by_themselves(tmp_path):
    import gguf

    for name, more in (("mmproj", {}), ("model", {"split.count": 3})):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type(name)
        for key, value in more.items():
            writer.add_uint16(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert kinds(path).keys() == {"unread"}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=9),
)
JSON = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "architectures", "model_type", "dtype"),
    *("torch_dtype", "tie_word_embeddings", "auto_map", "text_config", "compression_config"),
    *("num_nextn_predict_layers", "quantization_config"),
]
SECTION = [
    *("quant_method", "bits", "group_size", "desc_act", "sym", "checkpoint_format", "format"),
    *("dynamic", "meta", "lm_head", "zero_point", "version", "config_groups", "ignore"),
]


@pytest.fixture(scope="module", params=["gptq", "awq", "compressed-tensors", "plain"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / request.param
    if request.param == "plain":
        tiny_llama().save_pretrained(folder)
    else:
        saved(folder, request.param, SPEC)
    return folder, json.loads((folder / "config.json").read_text())


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON), st.dictionaries(st.sampled_from(SECTION), JSON)
)
def test_any_config_gets_a_verdict(whole, changes, section):
    """What a config says may be wrong in any way: the check finds it and does not fail."""
    folder, config = whole
    config = config | changes
    if isinstance(config.get("quantization_config"), dict):
        config["quantization_config"] = config["quantization_config"] | section
    (folder / "config.json").write_text(json.dumps(config))
    report = mlcalib.check(folder)
    assert report.status in (0, 1, 3, 4)
    assert report.readers.keys() == READERS.keys()
    assert report.text()


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.sampled_from("abc.0123_"), min_size=1, max_size=30),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        max_size=4,
    )
)
def test_tensors_that_a_model_does_not_have_are_no_damage(tmp_path_factory, extra):
    folder = tmp_path_factory.mktemp("extra")
    tiny_llama().save_pretrained(folder)
    tensors = {
        f"extra.{name}": torch.zeros(shape, dtype=kind) for name, (kind, shape) in extra.items()
    }
    state = load_file(folder / "model.safetensors")
    save_file(state | tensors, folder / "model.safetensors", {"format": "pt"})
    assert mlcalib.check(folder).ok
