"""One quantizer scales, another one solves: what comes of it, and what is refused."""

import json
import sys

import pytest
import torch
from small_fisher import felt_of
from small_models import save_tiny_llama, tiny_llama

import mlcalib
from mlcalib.cli import main
from mlcalib.models.loading import load_model
from mlcalib.quantization.open_source import live_source
from mlcalib.quantization.prefixes import mixture_of
from mlcalib.quantization.scale import scale_block
from mlcalib.quantizers import quantizers
from mlcalib.statistics import StatisticSet
from mlcalib.studies.grid import variants_of
from mlcalib.studies.spec import read_study

GRID = {"bits": 3, "group_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=512, seq_len=32)


@pytest.fixture
def quantize(folder, text):
    def quantize(method, **options):
        common = {"format": "dense", "progress": False, "propagate": "float"}
        return mlcalib.quantize(folder, text, method=method, **common | options)

    return quantize


def total_loss(quantized):
    return sum(sum(by_language.values()) for by_language in quantized.losses.values())


def test_scales_are_those_of_the_first_and_codes_those_of_the_second(quantize):
    composed = quantize(["awq", "gptq"], **GRID)
    scaled = quantize("awq", **GRID)
    # On the float model both search on the same inputs and weights.
    assert composed.scales == scaled.scales
    assert any(each["exponent"] > 0 for each in composed.scales.values())
    name = "model.layers.0.self_attn.q_proj"
    assert not torch.equal(composed.linears[name].codes, scaled.linears[name].codes)
    assert total_loss(composed) < total_loss(scaled)
    assert composed.recipe["method"] == "gptq"
    assert composed.recipe["options"]["scales"] == "awq"


def test_it_is_one_recipe_however_it_is_asked_for(quantize):
    asked = [
        quantize([mlcalib.AWQ(points=4), "gptq"], **GRID),
        quantize([mlcalib.AWQ(points=4), mlcalib.GPTQ(**GRID)]),
        quantize(mlcalib.GPTQ(scales=mlcalib.AWQ(points=4), **GRID)),
        quantize("gptq", scales={"method": "awq", "points": 4}, **GRID),
    ]
    for other in asked[1:]:
        assert other.recipe == asked[0].recipe
        assert other.losses == asked[0].losses
    again = mlcalib.GPTQ(**asked[0].recipe["options"])
    assert again.scales == mlcalib.AWQ(points=4)


def test_the_model_computes_what_it_did(folder, text, quantize):
    composed = quantize(["awq", "gptq"], bits=8, group_size=8)
    ids = torch.tensor([[5, 9, 200, 31, 77]])
    with torch.no_grad():
        expected = load_model(str(folder))(ids).logits
        found = composed.model(ids).logits
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))


def test_smoothquant_and_gptq_for_8_bit_activations(folder, text, tmp_path):
    composed = mlcalib.quantize(
        folder, text, scheme="W8A8", method=["smoothquant", "gptq"], progress=False
    )
    alone = mlcalib.quantize(folder, text, scheme="W8A8", progress=False)
    assert composed.recipe["format"] == "compressed-tensors-int8"
    assert all(each["alpha"] == 0.5 for each in composed.scales.values())
    assert total_loss(composed) < total_loss(alone)
    composed.save(tmp_path / "out")
    assert mlcalib.check(tmp_path / "out").ok


def test_what_the_loss_feels_is_that_of_the_scaled_block():
    source = live_source(tiny_llama(vocabulary=384))
    text = mlcalib.calibration(
        None, corpus={"en": [[(7 * i + j) % 384 for j in range(64)] for i in range(4)]}, seq_len=32
    )
    asked = {"one": (mixture_of(text), 256)}
    name, block = next(iter(source.adapter.named_blocks(source.model)))
    before, fisher = (felt_of(source, text, asked)[name].mixtures["one"] for _ in range(2))
    quantizer = quantizers.get("gptq")(mlcalib.GPTQ(scales="awq", **GRID), torch.float32)
    statistics, drawn = {}, torch.Generator().manual_seed(0)
    for key, each in fisher.inputs.items():
        channels = each.view("saliency_gram")["gram"].shape[0]
        statistics[key] = StatisticSet(("gram", "moments"), channels)
        statistics[key].update(
            torch.randn(64, channels, generator=drawn) * torch.linspace(0.1, 3, channels)
        )
    scaled = scale_block(source.adapter, name, block, statistics, quantizer, set(), None, fisher)
    truth = felt_of(live_source(source.model), text, asked)[name].mixtures["one"]
    assert {"self_attn.v_proj", "mlp.up_proj"} <= set(scaled.made)
    # The sizes by which tokens are counted are those of unscaled inputs, so they stay alike only up
    # to a factor, and nearly.
    for kind, names in (("output_gram", scaled.made), ("saliency_gram", scaled.scales)):
        for name in names:
            old, found, expected = (_normed(each, kind, name) for each in (before, fisher, truth))
            assert float((found - expected).norm()) < float((old - expected).norm()) / 2, name


def _normed(fisher, kind, name):
    found = fisher.outputs[name] if kind == "output_gram" else fisher.inputs[name]
    gram = found.view(kind)["gram"]
    return gram / gram.norm()


def test_gradients_weigh_scales_and_codes(quantize):
    felt = quantize(["awq", "gptq"], fisher_tokens=256, **GRID)
    plain = quantize(["awq", "gptq"], **GRID)
    assert felt.scales != plain.scales
    total = {name: sum(each.values()) for name, each in felt.divergence.items()}
    assert all(value >= 0 for value in total.values())
    assert sum(total.values()) > 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ([mlcalib.AWQ(bits=4), "gptq"], GRID, "awq is to scale with bits 4, and gptq to solve"),
        (["rtn", "gptq"], GRID, "scales is rtn, which scales no channels; give awq or smoothquant"),
        (["awq", "rtn"], GRID, r"method is \[awq, rtn\], but rtn does not solve .* expected gptq"),
        (["awq", "smoothquant", "gptq"], GRID, "method is a list of 3, expected two"),
        (["awq", "gptq"], {"scales": "awq"}, "scales= was given too"),
        (["awq", mlcalib.GPTQ(bits=3)], {"bits": 3}, "method is an object"),
        ("gptq", {"scales": "acq"}, "unknown quantizer 'acq'.*awq"),
    ],
)
def test_what_is_refused(quantize, method, options, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        quantize(method, **options)


def test_the_command_takes_it_as_an_option(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = [
        "quantize", folder, "--out", out, "--bits", "3", "--group-size", "32", "--format", "dense",
        "--languages", "en", "--tokens", "64", "--seq-len", "32", "--option", "scales=awq",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mlcalib", *map(str, asked)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    record = json.loads((out / "mlcalib.json").read_text())
    assert record["recipe"]["options"]["scales"] == "awq"
    assert record["scales"]


def test_a_study_has_one_beside_the_others():
    spec = read_study({
        "name": "composed",
        "models": ["model"],
        "settings": [{"languages": "en"}],
        "quantizers": [
            {"method": "gptq", "scales": [None, "awq", {"method": "smoothquant", "alpha": 0.4}]},
            ["awq", mlcalib.GPTQ(bits=3)],
            [mlcalib.AWQ(points=4), mlcalib.GPTQ(mix="Q4_K_M")],
        ],
    })  # fmt: skip
    names = [each.rpartition("-en")[0] for each in variants_of(spec)]
    assert [name.removesuffix("-quantized") for name in names] == [
        "gptq-w4-g128",
        "awq+gptq-w4-g128",
        "smoothquant_0.4+gptq-w4-g128",
        "awq+gptq-w3-g128",
        "awq_4+gptq-Q4_K_M",
    ]
