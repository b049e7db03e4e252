"""Weights that blocks share are solved once, on the statistics of all their places."""

import pytest
import torch
from examine import logits, running_model
from small_models import tiny_llama
from small_tokenizer import make_tokenizer
from test_memory import planned, source_and_job
from tiny_architectures import architectures

import mlcalib
from mlcalib import _core
from mlcalib.calibration_sets import from_ids
from mlcalib.checkpoints.packed import load_to_run
from mlcalib.models.discovery import discover
from mlcalib.statistics import statistic_bytes

IDS = torch.arange(24)[None] * 5 % 120
OPTIONS = {"group_size": 16, "progress": False}


def calibration():
    generator = torch.Generator().manual_seed(0)
    ids = {
        code: torch.randint(120, (count, 24), generator=generator).tolist()
        for code, count in (("en", 2), ("sw", 1))
    }
    return from_ids(ids, seq_len=24)


def shared_llama(**options):
    """A Llama of three blocks, the last of which has the MLP of the first."""
    model = tiny_llama(layers=3, **options)
    model.model.layers[2].mlp = model.model.layers[0].mlp
    model.__class__ = type("Shared", (type(model),), {})  # without a family file
    return model


@torch.no_grad()
def test_the_statistics_of_all_places_are_added_up():
    model, text = shared_llama(), calibration()
    seen = {0: [], 2: []}
    layers = model.model.layers
    calls = []
    handle = layers[0].mlp.gate_proj.register_forward_pre_hook(lambda _, a: calls.append(a[0][0]))
    for language in text.ids:
        for ids, _ in text.sequences(language):
            model(ids)
    handle.remove()
    seen[0], seen[2] = torch.cat(calls[0::2]), torch.cat(calls[1::2])
    x = torch.cat([seen[0], seen[2]]).double()
    options = {"damp": 0.01} | OPTIONS
    ours = mlcalib.quantize(model, text, method="gptq", tokenizer=make_tokenizer(), **options)
    weight = layers[0].mlp.gate_proj.weight
    grid = _core.GridSpec(4, 16, False, scale_dtype=torch.float32)
    gram = x.T @ x

    def error(linear):
        change = linear.dequantize().double() - weight.double()
        return float(torch.trace(change @ gram @ change.T))

    name = "model.layers.{}.mlp.gate_proj"
    solved, again = (ours.linears[name.format(layer)] for layer in (0, 2))
    assert torch.equal(solved.codes, again.codes)
    rounded = error(_core.rtn(weight, grid))
    assert error(solved) < 0.9 * rounded
    alone = shared_llama()
    alone.model.layers[2].mlp = tiny_llama(layers=3).model.layers[2].mlp  # shares nothing
    own = mlcalib.quantize(alone, text, method="gptq", tokenizer=make_tokenizer(), **options)
    assert error(solved) < error(own.linears[name.format(0)])
    of_first = ours.losses[name.format(0)]
    assert of_first.keys() == {"en", "sw"}
    assert not ours.losses.get(name.format(2))


def test_the_plan_counts_the_statistics_of_shared_weights():
    plan = planned(shared_llama(), calibration())
    alone = planned(tiny_llama(layers=3), calibration())
    assert alone.needs.shared == 0
    kinds = source_and_job(tiny_llama(layers=3), calibration())[1].kinds
    cpu = torch.device("cpu")  # gate and up read 64 channels, down 128
    each = sum(statistic_bytes(kind, size, cpu) for kind in kinds for size in (64, 128))
    assert plan.needs.shared == 2 * each  # of two languages
    assert plan.total - alone.total == plan.needs.shared
    assert "statistics of weights that blocks share" in plan.table()
    on_disk = planned(shared_llama(), calibration(), on_disk=True)
    assert on_disk.needs.shared == plan.needs.shared + 3 * 24 * 64 * 4


def test_what_is_shared_is_named_and_not_scaled(caplog):
    with caplog.at_level("INFO"):
        found = discover(shared_llama())
    mlp = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert f"not scaled: {', '.join(mlp)}" in caplog.text
    model = shared_llama()
    scaled = [
        key
        for layer in (0, 2)
        for group in found.scale_groups_of(model.model.layers[layer])
        for key in group.inputs
    ]
    assert scaled
    assert not any("mlp" in key for key in scaled)


def test_an_override_takes_all_places_or_none():
    with pytest.raises(ValueError, match="are one weight, but an override takes only one"):
        mlcalib.quantize(
            shared_llama(),
            method="rtn",
            tokenizer=make_tokenizer(),
            overrides={r"layers\.2\.mlp": {"bits": 8}},
            **OPTIONS,
        )
    ours = mlcalib.quantize(
        shared_llama(), method="rtn", tokenizer=make_tokenizer(), ignore=["mlp"], **OPTIONS
    )
    assert not any("mlp" in name for name in ours.linears)


@pytest.mark.filterwarnings("ignore")
def test_packed_checkpoints_hold_every_place(tmp_path):
    name = "Zamba2ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        model = running_model(name, architectures()[name], IDS, {})
    places = discover(model).places
    assert places
    source = tmp_path / "source"
    model.save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    options = {"method": "gptq", "format": "compressed-tensors"} | OPTIONS
    ours = mlcalib.quantize(model, calibration(), tokenizer=make_tokenizer(), **options)
    mlcalib.quantize_checkpoint(source, tmp_path / "out", calibration(), **options)
    assert places.keys() <= ours.linears.keys()
    packed = load_to_run(str(tmp_path / "out"))
    expected = logits(ours.model, IDS)
    torch.testing.assert_close(logits(packed, IDS), expected, rtol=0, atol=1e-3)
