"""W8A8: the int-quantized format as its library reads it, and SmoothQuant before it."""

import json

import core_data  # noqa: F401 (its hypothesis profile)
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given
from hypothesis import strategies as st
from small_models import tiny_llama
from test_awq import IDS, logits
from test_formats import DTYPES, random_linear
from test_packed_formats import same
from transformers import AutoModelForCausalLM

import mlcalib
from mlcalib._core import GridSpec
from mlcalib.checkpoints import load_quantized
from mlcalib.formats import formats
from mlcalib.quantizers import quantizers
from mlcalib.quantizers.base import ScaledInput
from mlcalib.statistics import StatisticSet

INT8 = formats.get("compressed-tensors-int8")()
SMOOTH = quantizers.get("smoothquant")


@st.composite
def linears(draw):
    spec = GridSpec(8, -1, True, scale_dtype=draw(st.sampled_from(DTYPES)))
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    return random_linear(spec, *shape, seed=draw(st.integers(0, 99)))


@given(linears())
def test_int8_comes_back_and_the_library_reads_it(linear):
    spec = linear.grid.spec
    tensors = INT8.pack("a", linear)
    assert same(INT8.unpack("a", tensors, spec), linear)
    section = json.loads(json.dumps(INT8.quantization_config({"a": spec}, "natural", [])))
    reader = formats.get(section["quant_method"]).of_config(section)
    back = reader.read_specs(section, ["a"], spec.scale_dtype)["a"]
    assert (back.bits, back.group_size, back.symmetric) == (8, -1, True)
    scheme = QuantizationConfig.model_validate(section).config_groups["group_0"]
    library = BaseCompressor.get_value_from_registry("int-quantized")
    state = {name.removeprefix("a."): tensor for name, tensor in tensors.items()}
    weight = library.decompress(state, scheme)["weight"]
    assert torch.equal(weight, linear.dequantize().to(spec.scale_dtype))


@pytest.mark.parametrize(
    "spec", [GridSpec(8, 32, True), GridSpec(4, -1, True), GridSpec(8, -1, False)]
)
def test_other_grids_are_refused(spec):
    with pytest.raises(ValueError, match="holds 8 bits, symmetric, with group_size -1"):
        INT8.check({"a": spec}, {"a": (64, 64)})


def test_damaged_tensors_and_sections_are_named():
    spec = GridSpec(8, -1, True, scale_dtype=torch.float32)
    tensors = INT8.pack("a", random_linear(spec, 4, 8))
    for name in tensors:
        with pytest.raises(ValueError, match=name):
            INT8.unpack("a", {k: v for k, v in tensors.items() if k != name}, spec)
        with pytest.raises(ValueError, match=r"a\.weight"):
            INT8.unpack("a", tensors | {name: tensors[name][:-1]}, spec)
    section = INT8.quantization_config({"a": spec}, "natural", [])
    section["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
    with pytest.raises(ValueError, match="a scale for each channel"):
        INT8.read_specs(section, ["a"], torch.float32)


def statistics_of(x):
    found = StatisticSet(("gram", "range"), x.shape[1])
    found.update(x)
    return found


def outliers(seed=0, tokens=200, channels=32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=generator)
    x[:, 3] *= 60
    return x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_those_of_the_paper(alpha):
    x, weights = (
        outliers(),
        [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (8, 24)],
    )
    quantizer = SMOOTH(SMOOTH.Options(alpha=alpha), torch.float32)
    found = quantizer.prepare([ScaledInput(weights, statistics_of(x))], None, None)
    expected = x.abs().amax(0) ** alpha / torch.cat(weights).abs().amax(0) ** (1 - alpha)
    ratio = found.values / expected
    torch.testing.assert_close(ratio, ratio[0].expand(32))
    assert found.summary["alpha"] == alpha


def test_channels_that_share_a_source_share_a_scale():
    source_of = torch.arange(32) // 4
    quantizer = SMOOTH(SMOOTH.Options(alpha=0.5), torch.float32)
    inputs = [ScaledInput([torch.randn(8, 32)], statistics_of(outliers()))]
    scale = quantizer.prepare(inputs, source_of, None).values
    assert torch.equal(scale, scale[::4].repeat_interleave(4))
    assert len(scale.unique()) > 4


def test_a_channel_without_activations_is_left_alone():
    x = outliers()
    x[:, 7] = 0
    quantizer = SMOOTH(SMOOTH.Options(alpha=0.5), torch.float32)
    scale = quantizer.prepare([ScaledInput([torch.randn(8, 32)], statistics_of(x))], None, None)
    assert scale.values.isfinite().all()
    assert (scale.values > 0).all()


def w8a8_error(x, weight, scale):
    """Squared error of the output with rounded weights and, token by token, activations."""
    step = (x / scale).abs().amax(1, keepdim=True) / 127
    rounded = (x / scale / step).round() * step
    steps = (weight * scale).abs().amax(1, keepdim=True) / 127
    return float(
        (rounded @ ((weight * scale / steps).round() * steps).T - x @ weight.T).square().sum()
    )


def test_the_search_beats_no_smoothing_and_is_near_the_best():
    x, weight = outliers(), torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    inputs = [ScaledInput([weight], statistics_of(x))]

    def error(alpha):
        quantizer = SMOOTH(SMOOTH.Options(alpha=alpha), torch.float32)
        return w8a8_error(x, weight, quantizer.prepare(inputs, None, None).values)

    best = min(error(step / 20) for step in range(21))
    assert error("search") < 0.5 * w8a8_error(x, weight, torch.ones(32))
    assert error("search") < 1.5 * best


@pytest.mark.parametrize("alpha", [-0.1, 1.1, "best"])
def test_strange_alphas_are_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        SMOOTH(SMOOTH.Options(alpha=alpha), torch.float32)


def rounded_activations(model):
    """Round what linears read as compressed-tensors does: per token, to 8 bits."""

    def hook(_, args):
        (x,) = args
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        return ((x / scale).round().clamp(-128, 127) * scale,)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook)
    return model


@pytest.mark.parametrize("alpha", [0.5, "search"])
def test_transformers_reads_what_was_meant(alpha, tmp_path, tokenizer):
    model = tiny_llama(vocabulary=384)
    calibration = mlcalib.calibration(None, corpus=IDS, seq_len=32)
    quantized = mlcalib.quantize(
        model,
        calibration,
        tokenizer=tokenizer,
        method="smoothquant",
        alpha=alpha,
        format="compressed-tensors-int8",
        progress=False,
    )
    assert len(quantized.scales) == 8
    quantized.save(tmp_path / "out", "compressed-tensors-int8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = logits(rounded_activations(quantized.model))
    assert (logits(loaded) - expected).abs().max() < 1e-3
    assert (logits(loaded) - logits(model)).abs().mean() < 0.1
    back = load_quantized(tmp_path / "out")
    assert all(same(back[name], linear) for name, linear in quantized.linears.items())
    report = mlcalib.check(tmp_path / "out")
    assert report.findings == ()
    assert report.readers["vLLM"].loads
