"""Folders as users of such tools have them: read as they are meant, or refused by every command."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import tiny_llama
from small_tokenizer import make_tokenizer

import mlcalib
from mlcalib.checkpoints.packed import load_to_run
from mlcalib.common.files import parts_folder

RTN = {"method": "rtn", "group_size": 32, "format": "dense", "progress": False}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    tiny_llama(vocabulary=384).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, tensors=None, **config):
    if tensors is not None:
        held = tensors(load_file(folder / WEIGHTS))
        save_file(held, folder / WEIGHTS, {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def tensors(function, **config):
    return lambda folder: change(folder, function, **config)


def shards(folder, more=None, skip=0, twice=False):
    """Split the weights into two files.

    ``more`` goes into the first one, past the index, and ``twice`` another value of a tensor.
    """
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = list(held)
    placed = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    if twice:
        more = {names[1]: held[names[1]] + 1}
    for file in sorted(set(placed.values())):
        inside = {name: held[name] for name in names if placed[name] == file}
        save_file(inside | ((more or {}) if "1" in file else {}), folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(list(placed.items())[skip:])}))
    return placed


def codes(dtype, scale=None, shape=None, **config):
    """Turn the projections into codes of a dtype, with scales of a name and a shape beside them."""

    def changed(held):
        made = {}
        for name, value in held.items():
            made[name] = value
            if name.endswith("_proj.weight"):
                factor = value.abs().amax() / 100
                made[name] = (value / factor).to(dtype)
                if scale is not None:
                    size = (1,) if shape is None else shape(value)
                    made[name.replace("weight", scale)] = factor.expand(size).clone()
        return made

    return tensors(changed, **config)


def put(name, position, value):
    def changed(held):
        held[name][position] = value
        return held

    return tensors(changed)


def without(name):
    return tensors(lambda held: {key: each for key, each in held.items() if key != name})


def renamed(folder):
    change(folder, lambda held: {f"language_model.{name}": each for name, each in held.items()})


def only(name, content=b"x"):
    def changed(folder):
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return changed


def section(**keys):
    return {"quantization_config": keys}


FP8 = torch.float8_e4m3fn
NVFP4 = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
ADAPTER = b'{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}'
REFUSED = {
    "fp8 without a section": (codes(FP8, "weight_scale"), "is F8_E4M3, and nothing", "damaged"),
    "int8 without a section": (codes(torch.int8), "is I8, and nothing says", "damaged"),
    "fp8 without scales": (
        codes(FP8, **section(quant_method="fp8")), "without a scale", "damaged",
    ),
    "fp8 with a scale for each column": (
        codes(FP8, "weight_scale", lambda w: (1, w.shape[1]), **section(quant_method="fp8")),
        "expected one scale, one for each row", "unread",
    ),
    "nvfp4 of compressed-tensors": (
        lambda folder: change(folder, **section(**NVFP4)), "nvfp4-pack-quantized", "unread",
    ),
    "nvfp4 of modelopt": (
        lambda folder: change(folder, **section(quant_method="modelopt", quant_algo="NVFP4")),
        "modelopt NVFP4", "unread",
    ),
    "mxfp4": (
        lambda folder: change(folder, **section(quant_method="mxfp4")), "'mxfp4'", "unread",
    ),
    "bitsandbytes": (
        codes(torch.uint8, **section(quant_method="bitsandbytes", load_in_4bit=True)),
        "kind 'fp4'", "unread",
    ),
    "a section without a method": (
        lambda folder: change(folder, **section(bits=4)), "no quant_method", "damaged",
    ),
    "consolidated alone": (only("consolidated.safetensors"), "another library's layout", "unread"),
    "a pickle alone": (only("pytorch_model.bin"), "pytorch_model.bin, a pickle", "unread"),
    "an adapter alone": (
        only("adapter_config.json", ADAPTER), "adapter .LoRA. for the model owner/base", "unread",
    ),
    "other names": (renamed, "there is language_model.model.embed_tokens", "unread"),
    "no head": (without("lm_head.weight"), "lacks 1 tensors.* lm_head", "damaged"),
    "no norm": (without(NORM), "lacks 1 tensors.* model.norm", "damaged"),
    "more layers than tensors": (
        lambda folder: change(folder, num_hidden_layers=3), "lacks 9 tensors", "damaged",
    ),
    "more tensors than layers": (
        lambda folder: change(folder, num_hidden_layers=1), "tensors of more", "damaged",
    ),
    "biases that are not there": (
        lambda folder: change(folder, attention_bias=True), "q_proj.bias", "damaged",
    ),
    "two values of one tensor": (
        lambda folder: shards(folder, twice=True),
        "both hold", "damaged",
    ),
    "an unknown type": (
        lambda folder: change(folder, model_type="foo"), "model_type 'foo'", "unread",
    ),
    "code of its own": (
        lambda folder: change(
            folder, model_type="foo", architectures=["FooForCausalLM"],
            auto_map={"AutoConfig": "configuration_foo.FooConfig"},
        ),
        "code of the checkpoint", "unread",
    ),
    "an unknown activation": (
        lambda folder: change(folder, hidden_act="nope"), "KeyError: 'nope'", "unread",
    ),
    "a word for a number": (
        lambda folder: change(folder, rms_norm_eps="1e-5"), "rms_norm_eps", "unread",
    ),
    "sizes for each layer": (
        lambda folder: change(folder, intermediate_size=[128, 128]), r"\[128, 128\]", "unread",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused_by_all_or_by_none(name, folder, tmp_path):
    """No command writes a model or a number of weights that are not those of the folder."""
    spoil, message, kind = REFUSED[name]
    spoil(folder)
    out = tmp_path / "out"
    with pytest.raises((ValueError, NotImplementedError), match=message):
        mlcalib.quantize_checkpoint(folder, out, **RTN)
    assert not out.exists()
    assert not parts_folder(out).exists()
    assert {finding.kind for finding in mlcalib.check(folder).findings} >= {kind}
    if "quantization_config" not in (folder / "config.json").read_text():
        with pytest.raises((ValueError, NotImplementedError)):
            load_to_run(str(folder))


@pytest.mark.parametrize(
    ("name", "position"), [(UP, (0, 0)), (NORM, 3), ("model.embed_tokens.weight", (7, 1))]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(name, position, value, folder, tmp_path):
    put(name, position, value)(folder)
    with pytest.raises(ValueError, match=rf"{name.removesuffix('.weight')}.* holds 1 NaN or Inf"):
        mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN)
    (finding,) = mlcalib.check(folder).findings
    assert (finding.kind, name in finding.message) == ("damaged", True)


def test_weights_that_overflow_are_refused(folder, tmp_path):
    put("model.embed_tokens.weight", (7, 1), 1e6)(folder)
    with pytest.raises(ValueError, match=r"embed_tokens.* dtype .torch.float16. cannot hold"):
        mlcalib.quantize_checkpoint(folder, tmp_path / "out", dtype="float16", **RTN)


def test_modelopt_in_fp8_is_read(folder, tmp_path):
    mlcalib.quantize_checkpoint(folder, tmp_path / "plain", **RTN)
    codes(FP8, "weight_scale", lambda w: ())(folder)
    content = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(content))
    mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN | {"bits": 8})
    held, made = load_file(folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    exact = held[UP].float() * held[UP.replace("weight", "weight_scale")]
    torch.testing.assert_close(made[UP], exact, atol=0.01, rtol=0)
    assert not (tmp_path / "out/hf_quant_config.json").exists()
    loaded = load_to_run(str(folder), "float32").state_dict()
    assert torch.equal(loaded[UP], exact)


def test_what_a_shard_holds_beside_the_index_is_taken_along(folder, tmp_path):
    more = {"model.extra.weight": torch.ones(4)}
    shards(folder, more, skip=1)  # nor does the index name the first tensor
    mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN)
    assert torch.equal(
        load_file(tmp_path / "out" / WEIGHTS)["model.extra.weight"], more["model.extra.weight"]
    )


def test_an_adapter_beside_the_model_is_named(folder, tmp_path, caplog):
    (folder / "adapter_config.json").write_bytes(ADAPTER)
    mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN)
    assert "it is neither applied nor copied" in caplog.text
    assert not (tmp_path / "out/adapter_config.json").exists()


@pytest.mark.parametrize("card", ["---\n- a\n---\nx", "---\na: [\n---\nx", "no metadata", "---\nx"])
def test_any_readme_is_kept(card, folder, tmp_path):
    (folder / "README.md").write_text(card)
    mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN)
    text = (tmp_path / "out/README.md").read_text()
    assert text.endswith(f"{card.rpartition('---')[2].strip()}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: [each.unlink() for each in path.glob("tok*")], "has no tokenizer"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "cannot be loaded: JSONDecode"),
        (
            lambda path: (path / "tokenizer_config.json").write_text(
                '{"auto_map": {"AutoTokenizer": ["x.X", null]}, "tokenizer_class": "X"}'
            ),
            "is code of the checkpoint",
        ),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(spoil, message, folder, tmp_path):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        mlcalib.quantize_checkpoint(folder, tmp_path / "out", **RTN)


def test_text_is_not_made_for_what_is_refused(folder, tmp_path):
    def never():
        pytest.fail("text was read")

    for options in ({"group_size": 7}, {"bits": 9}, {"format": "gguf", "bits": 3}, {"damp": -1}):
        with pytest.raises(ValueError, match=r"group_size|bits|damp"):
            mlcalib.quantize_checkpoint(folder, tmp_path / "out", never, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (NORM, "model.norm.weight"),
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_quantized_folder_that_is_not_whole_is_refused(name, message, folder, tmp_path):
    first = tmp_path / "first"
    mlcalib.quantize_checkpoint(folder, first, **RTN | {"format": "awq"})
    change(first, lambda held: {key: each for key, each in held.items() if name not in key})
    for call in (
        lambda: mlcalib.quantize_checkpoint(first, tmp_path / "out", **RTN),
        lambda: mlcalib.convert(first, tmp_path / "out", "gptq"),
        lambda: load_to_run(str(first)),
    ):
        with pytest.raises(ValueError, match=rf"lacks 1 tensors.* {message}"):
            call()
    assert message in "".join(each.message for each in mlcalib.check(first).findings)
    assert not mlcalib.check(first).ok


def test_codes_without_their_section_are_named(folder, tmp_path):
    mlcalib.quantize_checkpoint(folder, tmp_path / "first", **RTN | {"format": "awq"})
    config = json.loads((tmp_path / "first/config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "first/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"there are codes, such as .*q_proj\.qweight"):
        mlcalib.quantize_checkpoint(tmp_path / "first", tmp_path / "out", **RTN)
