"""What a model's folder holds is compared with the model before anything runs."""

import json
import logging
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from small_text import IDS
from small_tokenizer import make_tokenizer

import mlcalib
from mlcalib.checkpoints import load_quantized
from mlcalib.quantization.open_source import open_source

RTN = {"method": "rtn", "group_size": 32, "format": "dense", "progress": False}
FORMATS = {
    "compressed-tensors": {},
    "compressed-tensors-int8": {"bits": 8, "group_size": -1, "symmetric": True},
    "gptq": {},
    "gptq-v2": {},
    "awq": {},
    "bitsandbytes": {"numbers": "nf4"},
    "bitsandbytes-double": {"numbers": "nf4"},
    "compressed-tensors-fp8": {"numbers": "e4m3", "group_size": -1},
    "compressed-tensors-mxfp4": {"numbers": "e2m1"},
    "compressed-tensors-nvfp4": {"numbers": "e2m1", "group_size": 16},
}


@pytest.fixture
def folder(tmp_path):
    return made(tmp_path / "model", tiny_llama(vocabulary=384, hidden=64, intermediate=160))


def made(folder, model):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def change(folder, tensors=None, **config):
    """Change a folder's tensors by a function, and keys of its config."""
    if tensors is not None:
        held = tensors(load_file(folder / "model.safetensors"))
        save_file(held, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def outputs(folder, tmp_path, **options):
    """The tensors of a checkpoint, quantized in memory and streamed, which must be the same."""
    options = RTN | options
    form = options["format"]
    for path in (tmp_path / "a", tmp_path / "b"):
        shutil.rmtree(path, ignore_errors=True)
    mlcalib.quantize(folder, **options).save(tmp_path / "a", form)
    mlcalib.quantize_checkpoint(folder, tmp_path / "b", **options)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b/config.json").read_text()
    return one


def refused(folder, tmp_path, match, error=ValueError, **options):
    for call in (
        lambda: mlcalib.quantize(folder, **RTN | options),
        lambda: mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN | options),
    ):
        with pytest.raises(error, match=match):
            call()


# FP8 as published: one scale for a tensor, a row, or a block.


def fp8(scale_of, name):
    def codes(tensors):
        made = {}
        for key, value in tensors.items():
            if not key.endswith("_proj.weight"):
                made[key] = value
                continue
            scale, spread = scale_of(value)
            made[key] = (value / spread).to(torch.float8_e4m3fn)
            made[key.replace("weight", name)] = scale
        return made

    return codes


def by_tensor(weight):
    scale = weight.abs().amax().float() / 448
    return scale.reshape(()), scale


def by_row(weight):
    scale = weight.abs().amax(1, keepdim=True).float() / 448
    return scale, scale


def by_block(weight, rows=48, columns=40):
    scales = torch.stack(
        [
            torch.stack([part.abs().amax().float() / 448 for part in band.split(columns, 1)])
            for band in weight.split(rows, 0)
        ]
    )
    spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return scales, spread[: weight.shape[0], : weight.shape[1]]


BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 40]}
SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": SCHEME}},
}


@pytest.mark.parametrize(
    ("scale_of", "name", "section"),
    [
        (by_block, "weight_scale_inv", BLOCKS),
        (by_row, "weight_scale", CHANNELS),
        (by_tensor, "weight_scale", CHANNELS),
        (by_tensor, "weight_scale_inv", {"quant_method": "fp8"}),
    ],
)
def test_fp8_is_what_its_scales_say(folder, tmp_path, scale_of, name, section):
    plain = load_file(folder / "model.safetensors")
    change(folder, fp8(scale_of, name), quantization_config=section)
    exact = {}
    for key, value in load_file(folder / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            exact[key] = value.float() * scale_of(plain[key])[1]
        elif not key.endswith(name):
            exact[key] = value
    found = outputs(folder, tmp_path)
    dequantized = shutil.copytree(folder, tmp_path / "dequantized")
    change(dequantized, lambda _: exact, quantization_config=None)
    wanted = outputs(dequantized, tmp_path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert "quantization_config" not in json.loads((tmp_path / "a/config.json").read_text())


@pytest.mark.parametrize("form", FORMATS)
def test_a_quantized_checkpoint_is_quantized_again_from_what_its_codes_say(folder, tmp_path, form):
    first = RTN | {"format": form} | FORMATS[form]
    mlcalib.quantize_checkpoint(folder, tmp_path / "first", **first)
    said = {f"{name}.weight": each for name, each in load_quantized(tmp_path / "first").items()}
    dense = shutil.copytree(folder, tmp_path / "dense")
    change(dense, lambda held: held | {name: each.dequantize() for name, each in said.items()})
    found = outputs(tmp_path / "first", tmp_path, bits=3)
    wanted = outputs(dense, tmp_path, bits=3)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_settings_in_a_file_of_their_own_count(folder, tmp_path):
    mlcalib.quantize_checkpoint(folder, tmp_path / "first", **RTN | {"format": "gptq"})
    wanted = outputs(tmp_path / "first", tmp_path, bits=3)
    config = json.loads((tmp_path / "first/config.json").read_text())
    section = config.pop("quantization_config")
    (tmp_path / "first/config.json").write_text(json.dumps(config))
    (tmp_path / "first/quantize_config.json").write_text(json.dumps(section))
    found = outputs(tmp_path / "first", tmp_path, bits=3)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    (tmp_path / "first/quantize_config.json").unlink()
    refused(
        tmp_path / "first",
        tmp_path,
        "lacks 14 tensors that LlamaForCausalLM needs.* no quantization_config that explains",
    )


def test_codes_that_nothing_explains_are_refused(folder, tmp_path):
    change(folder, fp8(by_row, "weight_scale"))
    refused(folder, tmp_path, r"_proj.weight is F8_E4M3, and nothing says which numbers")
    change(folder, quantization_config={"quant_method": "quanto"})
    refused(folder, tmp_path, "quantized with 'quanto'", NotImplementedError)
    change(folder, lambda held: {k: v for k, v in held.items() if "scale" not in k})
    change(folder, quantization_config=BLOCKS)
    refused(folder, tmp_path, r"without a scale that says what it stands for")


def test_scales_of_another_shape_are_refused(folder, tmp_path):
    change(folder, fp8(by_block, "weight_scale_inv"), quantization_config={"quant_method": "fp8"})
    refused(folder, tmp_path, r"weight_scale_inv is \[2, 4\] for a weight \[64, 160\]; expected")


@given(
    extra=st.dictionaries(
        st.sampled_from(["model.layers.2.eh_proj", "mtp.0.norm", "x", "model.embed_x"]).flatmap(
            lambda stem: st.sampled_from([f"{stem}.weight", f"{stem}.bias", stem])
        ),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_the_model_has_no_place_for_is_copied_and_named(folder, tmp_path, caplog, extra):
    source = tmp_path / "extra"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(folder, source)
    held = {name: torch.ones(shape).to(dtype) * 3 for name, (dtype, shape) in extra.items()}
    change(source, lambda tensors: tensors | held, num_nextn_predict_layers=1)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = outputs(source, tmp_path)
    for name, tensor in held.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert f"{len(held)} tensors that LlamaForCausalLM has no place for" in caplog.text
    assert json.loads((tmp_path / "a/config.json").read_text())["num_nextn_predict_layers"] == 1


def test_a_file_that_no_index_names_is_named(folder, tmp_path, caplog):
    save_file({"x": torch.ones(1)}, folder / "consolidated.safetensors")
    with caplog.at_level(logging.WARNING):
        outputs(folder, tmp_path)
    assert "no index names consolidated.safetensors" in caplog.text
    assert not (tmp_path / "a" / "consolidated.safetensors").exists()


def test_a_head_that_is_not_the_embedding_is_kept(tmp_path, caplog):
    folder = made(tmp_path / "model", tiny_llama(vocabulary=384, tied=True))
    assert "lm_head.weight" not in outputs(folder, tmp_path)
    change(
        folder, lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    )
    assert "lm_head.weight" not in outputs(folder, tmp_path)  # the same tensor, saved twice
    assert json.loads((tmp_path / "a/config.json").read_text())["tie_word_embeddings"] is True
    head = torch.randn(384, 64)
    change(folder, lambda held: held | {"lm_head.weight": head})
    found = outputs(folder, tmp_path)
    assert torch.equal(found["lm_head.weight"], head)
    assert json.loads((tmp_path / "a/config.json").read_text())["tie_word_embeddings"] is False
    assert "config ties lm_head.weight" in caplog.text


def test_other_shapes_than_the_configs_are_refused(folder, tmp_path):
    name = "model.layers.1.self_attn.q_proj.weight"
    change(folder, lambda held: held | {name: torch.zeros(128, 64)})
    refused(
        folder, tmp_path, r"layers\.1\.self_attn\.q_proj\.weight is \[128, 64\], but .* \[64, 64"
    )


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_config_and_files_are_the_sources_own(family, tmp_path):
    folder = made(tmp_path / "model", tiny_model(family, vocabulary=384))
    text = {"LICENSE": "free", "chat_template.jinja": "{{ x }}", "modeling_x.py": "x = 1\n"}
    text |= {"special.json": '{"a":\n  1}', "generation_config.json": '{"top_k":7,"new": [1]}'}
    for name, content in text.items():
        (folder / name).write_text(content)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    config = json.loads((folder / "config.json").read_text())
    # As transformers 4 wrote it, with a key that no class knows.
    rope = config.pop("rope_parameters", {})
    config |= {"rope_theta": rope.get("rope_theta", 1e4), "torch_dtype": config.pop("dtype")}
    config |= {"a_key_of_theirs": {"deep": [1, 2]}, "transformers_version": "4.51.0"}
    (folder / "config.json").write_text(json.dumps(config))
    dense = "moe" in family or family == "mixtral"
    outputs(folder, tmp_path, format="dense" if dense else "compressed-tensors", symmetric=True)
    for out in (tmp_path / "a", tmp_path / "b"):
        found = json.loads((out / "config.json").read_text())
        section = found.pop("quantization_config", None)
        assert (section is None) == dense
        found.pop("tie_word_embeddings"), config.pop("tie_word_embeddings", None)
        assert found == config
        own = {"config.json", "README.md", "mlcalib.json", "model.safetensors"}
        copied = {path.name for path in out.iterdir()} - own
        assert copied == {path.name for path in folder.iterdir()} - own - {"pytorch_model.bin"}
        for name in copied:
            assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_another_dtype_is_what_the_config_says(folder, tmp_path):
    change(folder, torch_dtype="float32")
    outputs(folder, tmp_path, dtype="bfloat16")
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_a_tokenizer_that_was_given_is_saved_over_the_sources(folder, tmp_path):
    own = make_tokenizer("<s> $A")
    mlcalib.quantize(folder, tokenizer=own, **RTN).save(tmp_path / "a", "dense")
    assert (tmp_path / "a/tokenizer.json").read_text() != (folder / "tokenizer.json").read_text()


def test_sequences_longer_than_the_context_are_refused(folder, tmp_path):
    change(folder, max_position_embeddings=16)
    text = mlcalib.calibration(None, corpus=IDS, seq_len=32)
    options = {"method": "gptq", "calibration": text}
    refused(
        folder,
        tmp_path,
        "is 32, but LlamaForCausalLM has a context of 16",
        **options,
    )
    with pytest.raises(ValueError, match="context of 16 tokens"):
        mlcalib.imatrix(folder, text, progress=False)


def test_a_token_without_an_embedding_is_named(folder, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(60)])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(folder)
    text = mlcalib.calibration(
        tokenizer, "en", tokens=2048, seq_len=32, separator="eos", allow_short=True
    )
    options = {"method": "gptq", "calibration": text}
    refused(folder, tmp_path, r"the token 4\d\d \('<\|im_end\|>'\), but .* 384 rows", **options)
    refused(folder, tmp_path, "im_end.*a row for each token", format="gguf", symmetric=True)


@pytest.mark.parametrize("kind", ["NFKC", "Lowercase", "StripAccents"])
def test_gguf_refuses_normalizers_that_llama_cpp_lacks(folder, tmp_path, kind):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text()) | {"normalizer": {"type": kind}}
    path.write_text(json.dumps(content))
    message = rf"changes text \({kind}\) before it splits it"
    refused(folder, tmp_path, message, NotImplementedError, format="gguf", symmetric=True)


def test_gguf_warns_of_a_normalizer_that_changes_some_texts(folder, tmp_path, caplog):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        mlcalib.quantize_checkpoint(
            folder, tmp_path / "o", **RTN | {"format": "gguf", "symmetric": True}
        )
    assert "decomposed Yorùbá" in caplog.text


def test_a_source_gives_the_weights_that_transformers_loads(folder):
    from mlcalib.models.loading import load_model

    wanted = load_model(str(folder)).state_dict()
    found = open_source(folder, "auto").loaded().model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
