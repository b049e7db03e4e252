"""Static ranges of activations: from the text of each language into checkpoints and evaluations."""

import json

import pytest
import torch
from small_models import tiny_llama
from test_checkpoints import logits

import mlcalib
from mlcalib.checkpoints import load_quantized
from mlcalib.checkpoints.packed.loading import load_to_run
from mlcalib.formats import formats
from mlcalib.quantization.input_bounds import bound_of, share_clipped
from mlcalib.statistics import StatisticSet

FORMS = {"FP8": "compressed-tensors-fp8-static", "NVFP4": "compressed-tensors-nvfp4-w4a4"}
SCHEMES = pytest.mark.parametrize("scheme", FORMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    out = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(vocabulary=384, dtype=torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=512, seq_len=32)


def activations(seed, tokens=500, channels=24):
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(channels, generator=generator).exp()
    return torch.randn(tokens, channels, generator=generator) * size


def statistics_of(x):
    found = StatisticSet(("range", "histogram"), x.shape[1])
    found.update(x)
    return found


@pytest.mark.parametrize("divided", [None, torch.linspace(0.3, 4, 24)])
@pytest.mark.parametrize("clip", [0.0, 1e-3, 0.05, 0.5])
def test_no_language_has_more_outside_than_is_allowed(clip, divided):
    inputs = {"a": activations(0), "b": 3 * activations(1), "c": 0 * activations(2)}
    sets = {name: statistics_of(x) for name, x in inputs.items()}
    bound = bound_of(sets, clip, divided)
    found = {}
    for name, x in inputs.items():
        scaled = x if divided is None else x / divided
        outside = float((scaled.abs() > bound).double().mean())
        told = share_clipped(sets[name], bound, divided)
        assert outside <= told <= clip
        found[name] = told
    largest = max(
        float((x if divided is None else x / divided).abs().max()) for x in inputs.values()
    )
    if clip == 0:
        assert bound == pytest.approx(largest, rel=1e-6)
    else:
        assert bound < largest
        assert found["b"] > clip / 3  # a bin is a quarter of an octave


def test_text_that_never_came_has_no_say():
    assert bound_of({"a": StatisticSet(("range", "histogram"), 4)}, 0.1) == 0


@SCHEMES
def test_linears_of_one_input_share_what_readers_fuse(scheme, folder, text):
    quantized = mlcalib.quantize(folder, text, scheme=scheme, progress=False)
    layer = "model.layers.0"
    for members in ("qkv", ("gate", "up")):
        module = "self_attn" if members == "qkv" else "mlp"
        linears = [quantized.linears[f"{layer}.{module}.{each}_proj"] for each in members]
        assert len({each.input_bound for each in linears}) == 1
        assert linears[0].input_bound > 0
        if scheme == "FP8":
            assert len({float(s) for each in linears for s in each.grid.scale}) == 1
        else:
            assert len({each.grid.spec.global_scale for each in linears}) == 1
    ranges = quantized.ranges[f"{layer}.mlp.down_proj"]
    largest = max(max(-low, high) for low, high in ranges.values())
    assert quantized.linears[f"{layer}.mlp.down_proj"].input_bound == pytest.approx(largest)
    assert set(quantized.clipped[f"{layer}.mlp.down_proj"].values()) == {0.0}


@SCHEMES
def test_clipping_is_recorded_per_language_and_on_the_card(scheme, folder, text, tmp_path):
    record = mlcalib.quantize_checkpoint(
        folder, tmp_path / "out", text, scheme=scheme, activation_clip=0.01, progress=False
    )
    assert record["recipe"]["activation_clip"] == 0.01
    shares = [
        share for each in record["layers"].values() for share in each["input_clipped"].values()
    ]
    assert {
        language for each in record["layers"].values() for language in each["input_clipped"]
    } == {
        "en",
        "sw",
    }
    assert all(share <= 0.01 for share in shares)
    assert max(shares) > 0.002
    for name, linear in load_quantized(tmp_path / "out").items():
        bound = record["layers"][name]["input_bound"]
        assert linear.input_bound == pytest.approx(bound, rel=1e-2)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "activations clipped" in card
    assert "activation_clip=0.01" in card
    quantized = mlcalib.quantize(folder, text, scheme=scheme, activation_clip=0.01, progress=False)
    quantized.save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "mlcalib.json").read_text())
    assert again["layers"] == record["layers"]


def test_scaled_channels_have_the_range_of_what_is_rounded(folder, text):
    """SmoothQuant divides inputs: their static range is that of the divided ones."""
    seen = {}
    quantized = mlcalib.quantize(
        folder,
        text,
        method=["smoothquant", "gptq"],
        propagate="float",
        scheme="FP8",
        progress=False,
    )

    def see(name):
        def hook(_, args):
            seen[name] = max(seen.get(name, 0.0), float(args[0].abs().max()))

        return hook

    names = [name for name in quantized.linears if ".layers.0." in name]
    for name in names:
        quantized.model.get_submodule(name).register_forward_pre_hook(see(name))
    for language in text.ids:
        for ids, _ in text.sequences(language):
            quantized.model(ids)
    query = "model.layers.0.self_attn.q_proj"
    assert quantized.scales
    assert quantized.linears[query].input_bound == pytest.approx(seen[query], rel=0.02)


@SCHEMES
def test_evaluations_round_activations(scheme, folder, text, tmp_path):
    quantized = mlcalib.quantize(folder, text, scheme=scheme, activation_clip=0.02, progress=False)
    quantized.save(tmp_path / "out")
    found = logits(load_to_run(str(tmp_path / "out")))
    assert not torch.equal(found, logits(quantized.model))
    form = formats.get(FORMS[scheme])()

    def rounding(name, linear):
        packed = form.pack(name, linear)
        if scheme == "NVFP4":
            return form.input_rounding(name, packed)
        scale = packed[f"{name}.input_scale"]
        return lambda x: (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale

    for name, linear in quantized.linears.items():
        rounded = rounding(name, linear)
        module = quantized.model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, rounded=rounded: (rounded(args[0]),))
    torch.testing.assert_close(found, logits(quantized.model), rtol=0, atol=0.02)


@SCHEMES
def test_what_no_text_shows_is_refused(scheme, folder, tmp_path):
    with pytest.raises(ValueError, match="stores ranges of activations, which calibration text"):
        mlcalib.quantize(folder, scheme=scheme, method="rtn", progress=False)


def test_rounding_to_nearest_takes_ranges_from_text(folder, text):
    quantized = mlcalib.quantize(folder, text, scheme="FP8", method="rtn", progress=False)
    linears = [quantized.linears[f"model.layers.1.self_attn.{each}_proj"] for each in "qkv"]
    assert len({float(scale) for each in linears for scale in each.grid.scale}) == 1
    weights = [each.dequantize() for each in linears]
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"activation_clip": 0.1}, "the format stores no ranges of activations"),
        ({"scheme": "FP8", "activation_clip": 1.0}, "expected a share of activations"),
        ({"scheme": "FP8", "method": "awq"}, "fits each row by itself"),
        ({"scheme": "FP8", "per_tensor": False}, "means per_tensor=True"),
        ({"numbers": "e4m3", "group_size": -1, "format": FORMS["FP8"]}, "per_tensor=True"),
    ],
)
def test_what_does_not_go_together_is_refused(options, told, folder, text):
    with pytest.raises(ValueError, match=told):
        mlcalib.quantize(folder, text, progress=False, **options)


def test_other_checkpoints_have_no_ranges_to_convert(folder, text, tmp_path):
    quantized = mlcalib.quantize(folder, text, scheme="NVFP4A16", progress=False)
    quantized.save(tmp_path / "out")
    with pytest.raises(ValueError, match="they come from calibration text"):
        mlcalib.convert(tmp_path / "out", tmp_path / "more", FORMS["NVFP4"])
    with pytest.raises(ValueError, match="the range of its input is not known"):
        quantized.save(tmp_path / "w4a4", FORMS["NVFP4"])


def test_activations_left_as_they_are_make_weights_alone(folder, text, tmp_path):
    quantized = mlcalib.quantize(folder, text, scheme="NVFP4", progress=False)
    quantized.save(tmp_path / "out")
    mlcalib.convert(tmp_path / "out", tmp_path / "weights", "compressed-tensors-nvfp4")
    assert torch.equal(logits(load_to_run(str(tmp_path / "weights"))), logits(quantized.model))
