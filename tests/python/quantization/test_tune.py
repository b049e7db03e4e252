"""Scales trained after quantization: what changes, what stays, and what is refused."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from foreign_reader import from_transformers
from safetensors.torch import load_file
from small_models import tiny_llama, tiny_model
from small_text import IDS
from test_shared_places import shared_llama
from torch.nn.functional import kl_div, log_softmax

import mlcalib
from mlcalib import _core
from mlcalib._core import GridSpec
from mlcalib.checkpoints import load_quantized, save_checkpoint
from mlcalib.checkpoints.card import model_card, tuned_card
from mlcalib.cli import main
from mlcalib.common.sha256 import file_sha256
from mlcalib.formats import formats
from mlcalib.models import adapter_for
from mlcalib.quantization.scale_tuning import ScaleTraining, Tuning
from mlcalib.quantization.scaled_linear import ScaledLinear

HALF = torch.float16
OPTIONS = {"learning_rate": 3e-3, "epochs": 2, "progress": False}
GRIDS = [
    GridSpec(4, 32, False),
    GridSpec(3, 32, True),
    GridSpec(2, -1, False),
    GridSpec(4, 24, False),  # a last group of 16
    GridSpec(4, 32, True, numbers="nf4"),
    GridSpec(8, -1, True, numbers="e4m3"),
]


def named(spec):
    return f"{spec.bits}-{spec.group_size}-{'a' * (not spec.symmetric)}{spec.numbers}"


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture(scope="module")
def text():
    """As ``calibration``: 8 sequences in en, 4 in sw."""
    return mlcalib.calibration(None, corpus=IDS, seq_len=32)


@pytest.fixture(scope="module")
def more():
    """20 sequences in each language: enough for scales to gain on text that is held out."""
    ids = {
        code: [[(a * i * i + i * j * j + b * j) % 360 for j in range(32)] for i in range(1, 21)]
        for code, a, b in (("en", 7, 3), ("sw", 11, 5))
    }
    return mlcalib.calibration(None, corpus=ids, seq_len=32)


@pytest.fixture(scope="module")
def quantized(model, text, tokenizer):
    return mlcalib.quantize(model, text, bits=3, group_size=32, tokenizer=tokenizer, progress=False)


@pytest.fixture(scope="module")
def tuned(model, quantized):
    return mlcalib.tune(quantized, model=model, **OPTIONS)


def divergence(model, quantized, text):
    """Language → KL(float ‖ quantized) of held-out text: the first sequence of each language."""
    found = {}
    with torch.no_grad():
        for language in text.ids:
            ids, counted = next(text.sequences(language))
            wanted, got = (
                log_softmax(each(ids, use_cache=False).logits[0, :counted], -1)
                for each in (model, quantized)
            )
            found[language] = float(kl_div(got, wanted, reduction="sum", log_target=True) / counted)
    return found


@pytest.mark.parametrize("spec", GRIDS, ids=named)
def test_the_weight_is_the_dequantized_one(spec):
    own = torch.nn.Linear(64, 12)
    linear = _core.rtn(own.weight.detach(), spec)
    scaled = ScaledLinear(own, linear)
    assert torch.equal(scaled.weight, linear.dequantize())
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled(x), torch.nn.functional.linear(x, linear.dequantize(), own.bias))


@pytest.mark.parametrize("spec", GRIDS, ids=named)
def test_gradients_are_those_of_finite_differences(spec):
    draw = torch.Generator().manual_seed(1)
    own = torch.nn.Linear(64, 5).double()
    own.weight.data.normal_(generator=draw)
    scaled = ScaledLinear(own, _core.rtn(own.weight.detach().float(), spec)).double()
    x = torch.randn(7, 64, generator=draw, dtype=torch.float64)
    changes = 0.1 * torch.randn(scaled.change.shape, generator=draw, dtype=torch.float64)
    scaled.change.data.copy_(changes)
    assert torch.autograd.gradcheck(
        lambda change: torch.func.functional_call(scaled, {"change": change}, (x,)),
        (scaled.change,),
        raise_exception=True,
    )


@pytest.mark.parametrize("name", ["llama-bias", "gemma2", "qwen2_moe"])
def test_one_backward_of_a_model_is_that_of_its_dense_weights(name, text, tokenizer):
    """Blocks run again for their gradients; the chain rule takes those of weights to scales."""
    model = tiny_model(name, vocabulary=384)
    quantized = mlcalib.quantize(
        model, method="rtn", bits=3, group_size=32, tokenizer=tokenizer, progress=False,
        format="dense",
    )  # fmt: skip
    options = Tuning(1e-3, 1, 1, 0.2, 0)
    arguments = (quantized.adapter, quantized.linears, model, text, options)
    training = ScaleTraining(quantized.model, *arguments)
    training._divergence(("sw", 1)).backward()

    ids, counted = list(text.sequences("sw"))[1]
    weights = {
        key: quantized.model.get_submodule(key).weight.detach().requires_grad_()
        for key in quantized.linears
    }
    named = {f"{key}.weight": weight for key, weight in weights.items()}
    call = {"input_ids": ids, "use_cache": False}
    got = torch.func.functional_call(quantized.model, named, kwargs=call).logits[0, :counted]
    with torch.no_grad():
        wanted = log_softmax(model(ids, use_cache=False).logits[0, :counted], -1)
    kl_div(log_softmax(got, -1), wanted, reduction="sum", log_target=True).backward()
    reached = 0
    for key, weight in weights.items():
        gradient = training._scaled[key].change.grad
        if weight.grad is None:  # an expert that no token reached
            assert gradient is None
            continue
        product = weight.grad * weight.detach()
        expected = product.unflatten(1, (-1, 32)).sum(2)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())
        reached += 1
    assert reached > 10


def test_only_scales_change(model, quantized, tuned):
    changed = 0
    for name, before in quantized.linears.items():
        after = tuned.linears[name]
        assert torch.equal(after.codes, before.codes)
        assert torch.equal(after.grid.zero, before.grid.zero)
        assert after.damp == before.damp
        ratio = after.grid.scale / before.grid.scale
        assert (ratio - 1).abs().max() < 0.2
        changed += int((ratio != 1).sum())
        assert torch.equal(tuned.model.get_submodule(name).weight, after.dequantize()), (
            "the model in memory is what its codes say"
        )
    assert changed > 100
    inside = {f"{name}.weight" for name in quantized.linears}
    for key, value in quantized.model.state_dict().items():
        assert key in inside or torch.equal(value, tuned.model.state_dict()[key])


def test_what_is_given_is_not_changed(model, text, tokenizer):
    own = mlcalib.quantize(model, text, bits=3, group_size=32, tokenizer=tokenizer, progress=False)
    states = [{k: v.clone() for k, v in each.state_dict().items()} for each in (own.model, model)]
    takes = [[each.requires_grad for each in given.parameters()] for given in (own.model, model)]
    mlcalib.tune(own, model=model, **OPTIONS)
    for given, state, took in zip((own.model, model), states, takes, strict=True):
        assert all(torch.equal(v, given.state_dict()[k]) for k, v in state.items())
        assert [each.requires_grad for each in given.parameters()] == took
        assert all(each.grad is None for each in given.parameters())
        assert not any("forward" in vars(each) for each in given.modules())
    assert own.tuned == []


def test_held_out_text_gains_and_the_record_says_by_how_much(model, text, quantized, tuned):
    (record,) = tuned.tuned
    before, after = (divergence(model, each.model, text) for each in (quantized, tuned))
    assert record["kl"] == {
        code: [pytest.approx(before[code], rel=1e-4), pytest.approx(after[code], rel=1e-4)]
        for code in ("en", "sw")
    }
    assert record["kept_epoch"] > 0
    assert sum(after.values()) < sum(before.values())
    assert record["held_out_tokens"] == {"en": 32, "sw": 32}
    assert record["tokens"] == sum(text.tokens.values()) - 64
    assert (record["epochs"], record["learning_rate"]) == (2, 3e-3)
    saved = tuned.metadata("dense")
    assert json.loads(json.dumps(saved["tuned"])) == tuned.tuned
    assert "tune" in tuned.seconds


def test_it_comes_near_the_float_model_where_only_scales_are_wrong(model, text, quantized):
    """Scales that were multiplied at random are found again."""
    draw = torch.Generator().manual_seed(0)
    linears = {}
    for name, linear in quantized.linears.items():
        wrong = (
            linear.grid.scale * (0.3 * torch.randn(linear.grid.scale.shape, generator=draw)).exp()
        )
        grid = _core.Grid(wrong, linear.grid.zero, linear.grid.spec)
        linears[name] = _core.QuantizedLinear(linear.codes, grid)
    options = Tuning(3e-2, 12, 2, 0.125, 0)
    training = ScaleTraining(
        quantized.model, quantized.adapter, linears, quantized.model, text, options
    )
    found = training.run(None)
    assert found.kept > 6
    first, last = (sum(found.divergences[at].values()) for at in (0, found.kept))
    assert last < 0.3 * first


def test_a_state_that_is_worse_is_never_returned(model, quantized):
    worse = mlcalib.tune(quantized, model=model, learning_rate=0.9, epochs=1, progress=False)
    (record,) = worse.tuned
    assert record["kept_epoch"] == 0
    assert all(before == after for before, after in record["kl"].values())
    for name, linear in quantized.linears.items():
        assert torch.equal(worse.linears[name].grid.scale, linear.grid.scale)
    assert "tuning did not help on held-out text: scales were left as they were" in worse.warnings()
    assert "none was better than before" in model_card(worse.metadata("dense"))


def test_the_same_twice_and_another_order_by_seed(model, quantized, tuned):
    again = mlcalib.tune(quantized, model=model, **OPTIONS)
    other = mlcalib.tune(quantized, model=model, seed=1, **OPTIONS)
    scales = [{n: x.grid.scale for n, x in each.linears.items()} for each in (tuned, again, other)]
    assert all(torch.equal(scales[0][name], scale) for name, scale in scales[1].items())
    assert any(not torch.equal(scales[0][name], scale) for name, scale in scales[2].items())
    assert again.tuned == tuned.tuned


@pytest.mark.parametrize("dtype", [torch.bfloat16, HALF])
@pytest.mark.parametrize("symmetric", [True, False])
def test_transformers_reads_the_same_logits(dtype, symmetric, more, tokenizer, tmp_path):
    model = tiny_llama(vocabulary=384, dtype=dtype)
    grid = {"bits": 3, "group_size": 32, "symmetric": symmetric}
    quantized = mlcalib.quantize(model, method="rtn", tokenizer=tokenizer, progress=False, **grid)
    tuned = mlcalib.tune(quantized, more, model=model, **{**OPTIONS, "learning_rate": 1e-2})
    assert tuned.tuned[0]["kept_epoch"]
    tuned.save(tmp_path / "out")
    ids = more.ids["en"][:1]
    with torch.no_grad():
        wanted = tuned.model(ids).logits
        assert torch.equal(from_transformers(tmp_path / "out")(ids).logits, wanted)
        assert not torch.equal(quantized.model(ids).logits, wanted)


def test_sequences_run_one_by_one(model, quantized, monkeypatch):
    """Also where a step takes several, so that memory does not grow with the batch."""
    seen = []
    forward = type(model).forward

    def watched(self, input_ids=None, **options):
        seen.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", watched)
    mlcalib.tune(quantized, model=model, batch=8, epochs=1, progress=False)
    assert set(seen) == {(1, 32)}


def test_blocks_keep_nothing_of_what_happens_inside(model, quantized, text):
    """Until they run again, in the backward pass, one by one."""
    arguments = (quantized.adapter, quantized.linears, model, text, Tuning(1e-3, 1, 1, 0.2, 0))
    training = ScaleTraining(quantized.model, *arguments)
    kept = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    def weights_kept():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            training._divergence(("en", 1))
        return {tuple(each.codes.shape) for each in quantized.linears.values()} & set(kept)

    hidden = {(32, 64)}  # of the head, which is outside of blocks
    assert weights_kept() <= hidden
    for _, block in quantized.adapter.named_blocks(training._model):
        del block.forward  # as if blocks did not run again
    assert weights_kept() > hidden


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_a_checkpoint_changes_in_its_scales_alone(form, model, more, tokenizer, tmp_path):
    grid = {"method": "rtn", "bits": 4, "group_size": 32, "format": form}
    folder = tmp_path / "float"
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    quantized = mlcalib.quantize(folder, progress=False, **grid)
    quantized.save(tmp_path / "in")
    (tmp_path / "in/extra.txt").write_text("kept")
    options = {**OPTIONS, "learning_rate": 1e-2}
    record = mlcalib.tune_checkpoint(tmp_path / "in", folder, tmp_path / "out", more, **options)
    assert record["kept_epoch"]
    tuned = mlcalib.tune(quantized, more, **options)
    assert record == {**tuned.tuned[0], "model": str(folder)}
    read = load_quantized(tmp_path / "out")
    assert all(torch.equal(x.grid.scale, tuned.linears[n].grid.scale) for n, x in read.items())

    before, after = (load_file(tmp_path / at / "model.safetensors") for at in ("in", "out"))
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(re.search(r"scales?$", name) for name in changed)
    names = {path.name for path in (tmp_path / "in").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names - {"model.safetensors", "mlcalib.json", "README.md"}:
        assert (tmp_path / "in" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    old, new = (json.loads((tmp_path / at / "mlcalib.json").read_text()) for at in ("in", "out"))
    assert new == {**old, "tuned": [record]}
    assert "## Tuned scales" in (tmp_path / "out/README.md").read_text()
    assert mlcalib.check(tmp_path / "out").ok


def test_a_checkpoint_of_another_tool(model, text, tokenizer, tmp_path):
    """Without a record there is none afterwards; the card says what was done."""
    spec = GridSpec(4, 32, True, scale_dtype=torch.float32)
    linears = {
        name: _core.rtn(linear.weight.detach(), spec)
        for name, linear in adapter_for(model).named_linears(model)
    }
    form = formats.get("compressed-tensors")()
    save_checkpoint(model, tokenizer, tmp_path / "in", form, linears, {})
    (tmp_path / "in/mlcalib.json").unlink()
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    places = (tmp_path / "in", tmp_path / "float", tmp_path / "out")
    mlcalib.tune_checkpoint(*places, text, **OPTIONS)
    assert not (tmp_path / "out/mlcalib.json").exists()
    assert (tmp_path / "out/README.md").read_text().startswith("## Tuned scales\n")


def test_a_failure_leaves_nothing(model, quantized, text, tokenizer, tmp_path, monkeypatch):
    quantized.save(tmp_path / "in")
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    from mlcalib.checkpoints import convert

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_json", full)
    with pytest.raises(OSError, match="No space"):
        mlcalib.tune_checkpoint(
            tmp_path / "in", tmp_path / "float", tmp_path / "out", text, **OPTIONS
        )
    assert {path.name for path in tmp_path.iterdir()} == {"in", "float"}


REFUSED = [
    ("Q4_K_S", r"super-blocks\)"),
    ("MXFP4A16", "float8_e8m0fnu numbers"),
    ("NVFP4A16", "float8_e4m3fn numbers"),
    ("FP8", "one number for all weights"),
]


@pytest.mark.parametrize(("scheme", "message"), REFUSED)
def test_scales_that_cannot_move_are_refused(scheme, message, text, tokenizer):
    model = tiny_llama(vocabulary=384, hidden=256, intermediate=256)
    quantized = mlcalib.quantize(model, text, tokenizer=tokenizer, progress=False, scheme=scheme)
    with pytest.raises(ValueError, match=f"its scales are .*{message}.*cannot be tuned"):
        mlcalib.tune(quantized, text, model=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected between 0 and 1"),
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"batch": 0}, "batch is 0"),
        ({"held_out": 1.0}, "held_out is 1.0, expected a share"),
    ],
)
def test_impossible_options(options, message, quantized):
    with pytest.raises(ValueError, match=message):
        mlcalib.tune(quantized, **options)


def test_what_is_missing_or_does_not_fit(model, quantized, text, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM\) was given in memory.*model="):
        mlcalib.tune(quantized)
    rounded = mlcalib.quantize(
        model, method="rtn", group_size=32, tokenizer=tokenizer, progress=False
    )
    with pytest.raises(ValueError, match=r"without text \(rtn\); give a calibration set"):
        mlcalib.tune(rounded, model=model)
    short = mlcalib.calibration(None, corpus={"en": [[1, 2, 3]]}, seq_len=32)
    with pytest.raises(ValueError, match=r"one sequence of text.*held out"):
        mlcalib.tune(quantized, short, model=model)
    unknown = mlcalib.calibration(None, corpus={"en": [[500] * 80]}, seq_len=32)
    with pytest.raises(ValueError, match="has the token 500"):
        mlcalib.tune(quantized, unknown, model=model)
    other = tiny_llama(vocabulary=400)
    with pytest.raises(ValueError, match="predicts 384 tokens, and the float model 400"):
        mlcalib.tune(quantized, model=other, progress=False)
    broken = tiny_llama(vocabulary=384)
    broken.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"predictions in 'en' \(sequence 0\) are NaN or Inf"):
        mlcalib.tune(quantized, model=broken, progress=False)


def test_checkpoints_that_are_refused(model, text, tokenizer, tmp_path):
    quantized = mlcalib.quantize(
        model, method="rtn", scheme="W4A16", group_size=32, tokenizer=tokenizer, progress=False,
        format=["gguf", "dense"],
    )  # fmt: skip
    for form in ("gguf", "dense"):
        quantized.save(tmp_path / form, form)
    with pytest.raises(NotImplementedError, match=r"is a GGUF file.*convert it"):
        mlcalib.tune_checkpoint(tmp_path / "gguf", "FLOAT", tmp_path / "out", text)
    with pytest.raises(ValueError, match="no quantization_config: nothing to read back"):
        mlcalib.tune_checkpoint(tmp_path / "dense", "FLOAT", tmp_path / "out", text)
    with pytest.raises(FileExistsError, match="dense exists"):
        mlcalib.tune_checkpoint(tmp_path / "gguf", "FLOAT", tmp_path / "dense", text)
    assert not (tmp_path / "out").exists()


def test_linears_that_share_a_weight_share_its_scales(more, tokenizer):
    model = shared_llama(vocabulary=384)
    quantized = mlcalib.quantize(
        model, method="rtn", bits=3, group_size=32, tokenizer=tokenizer, progress=False
    )
    assert quantized.adapter.places
    tuned = mlcalib.tune(quantized, more, model=model, **OPTIONS)
    for name, owner in quantized.adapter.places.items():
        scale = tuned.linears[owner].grid.scale
        assert torch.equal(tuned.linears[name].grid.scale, scale)
        assert not torch.equal(quantized.linears[owner].grid.scale, scale)
        weights = [tuned.model.get_submodule(each).weight for each in (name, owner)]
        assert torch.equal(*weights)


def test_weights_of_languages_count(model, quantized, text):
    """Text of weight 0 nearly changes nothing: what is kept is best for the other language."""
    one = replace(text, weights={"en": 1.0, "sw": 1e-9})
    tuned = mlcalib.tune(quantized, one, model=model, **OPTIONS)
    (record,) = tuned.tuned
    assert record["kl"]["en"][1] < record["kl"]["en"][0]
    assert record["calibration"]["weights"] == {"en": 1.0, "sw": 1e-9}


def test_the_card_says_how_to_do_it_again(tuned, text):
    card = model_card(tuned.metadata("dense"))
    assert "quantized = mlcalib.tune(quantized, calibration, model='LlamaForCausalLM', " in card
    assert "learning_rate=0.003, epochs=2, batch=2, held_out=0.125, seed=0)" in card
    assert "| en | 32 | " in card
    measured = card.replace("Nothing has been measured yet.", "Bits per byte: 3.")
    again = tuned_card(measured, tuned.tuned[0])
    assert "Bits per byte" not in again
    assert again.count("## Tuned scales") == 2
    assert again.index("## Tuned scales") < again.index("## Load it")


def test_the_command(model, quantized, tokenizer, tmp_path, monkeypatch, capsys):
    quantized.save(tmp_path / "in")
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    given = ["tune", tmp_path / "in", "--model", tmp_path / "float", "--out", tmp_path / "out"]
    given += ["--languages", "en,sw", "--tokens", 300, "--seq-len", 32, "--learning-rate", 0.003]
    monkeypatch.setattr(sys, "argv", ["mlcalib", *map(str, given)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    (record,) = json.loads((tmp_path / "out/mlcalib.json").read_text())["tuned"]
    before, after = record["kl"]["sw"]
    assert f"sw  {before:.4f} -> {after:.4f}\n" in out
    assert out.endswith(f"written to {tmp_path / 'out'}\n")
    assert record["calibration"]["arguments"]["tokens"] == 300
    hashes = {file_sha256(tmp_path / at / "model.safetensors") for at in ("in", "out")}
    assert len(hashes) == (2 if record["kept_epoch"] else 1)
