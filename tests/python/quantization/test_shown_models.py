"""What a quantized model and a memory plan show of themselves."""

import pytest
import torch
from small_html import Shown
from small_models import save_tiny_llama

import mlcalib
from mlcalib.quantization.quantize_checkpoint import plan_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "<b>tiny", tokenizer)


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=128, seq_len=32)


@pytest.fixture(scope="module")
def quantized(folder, text):
    method = mlcalib.GPTQ(group_size=32, symmetric=True)
    ignore = ["layers.0.self_attn.o_proj"]
    return mlcalib.quantize(folder, text, method=method, ignore=ignore, progress=False)


def test_a_quantized_model(quantized, folder):
    lines = repr(quantized).splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        f"QuantizedModel {folder}: gptq, 4 bits, groups of 32, symmetric, calibrated on en+sw"
    )
    assert "tensor(" not in repr(quantized)
    shown = Shown(quantized._repr_html_())
    languages, worst = shown.tables
    sums = {code: sum(by[code] for by in quantized.losses.values()) for code in ("en", "sw")}
    assert [row[:2] for row in languages[1:]] == [[c, f"{loss:.4g}"] for c, loss in sums.items()]
    means = {name: sum(by.values()) / 2 for name, by in quantized.losses.items()}
    assert [row[0] for row in worst[1:]] == sorted(means, key=means.get, reverse=True)[:5]
    assert "layers.0.self_attn.o_proj (1 linears): in floating point" in shown.text


def test_its_size_is_that_of_its_files(quantized, tmp_path):
    quantized.save_pretrained(tmp_path / "out")
    # A code of 4 bits, and a scale in float32 for 32 of them.
    assert "13 linears, 5.00 bits per quantized weight; about 0." in repr(quantized)
    written = (tmp_path / "out/model.safetensors").stat().st_size / 1e6
    said = float(repr(quantized).partition("about ")[2].partition(" MB")[0])
    assert said == pytest.approx(written, abs=0.06)


def test_without_text_and_without_codes(folder):
    plain = mlcalib.quantize(folder, method="rtn", group_size=32, format="dense", progress=False)
    assert "without text" in repr(plain)
    assert "14 linears; 0.5 MB, as dense holds floats" in repr(plain)
    assert Shown(plain._repr_html_()).tables == []
    with pytest.raises(ValueError, match="no losses per language"):
        plain.plot_losses()


def test_losses_are_drawn(quantized):
    figure = quantized.plot_losses("en")
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert "mlp.down_proj" in titles
    assert len(titles) == 7


def test_it_goes_on_with_a_text(quantized, tokenizer):
    ids = tokenizer("the market", return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat([ids, quantized.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    expected = tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    assert quantized.generate("the market", max_new_tokens=6) == expected
    with pytest.raises(ValueError, match="makes no token of the prompt"):
        quantized.generate("")
    with pytest.raises(ValueError, match="max_new_tokens is 0, expected 1"):
        quantized.generate("the", max_new_tokens=0)


def test_a_memory_plan(folder, text):
    plan = plan_checkpoint(folder, text, group_size=32, memory=1e-6)
    assert repr(plan).startswith("MemoryPlan: memory on cpu: about 0.00")
    assert len(repr(plan).splitlines()) == 2  # with what it had to do without
    shown = Shown(plan._repr_html_())
    assert "statistics of sw" in [row[0] for row in shown.tables[0]]
    assert all(step in shown.text for step in plan.steps)
    assert plan.table().splitlines()[0].endswith("that may be taken; in GB:")
