"""LLM.int8(): what bitsandbytes computes, restated, and its outliers in each language."""

import pytest
import torch
from small_models import save_tiny_llama, tiny_llama, tiny_model
from torch import nn

import mlcalib
from mlcalib.evaluation import Subject
from mlcalib.evaluation.outliers import outlier_rows
from mlcalib.models.llm_int8 import Int8Linear, Outliers, counted_outliers, run_in_int8


def as_bitsandbytes(x, weight, bias, threshold):
    """``int8_vectorwise_quant`` and ``int8_mixed_scaled_mm`` of bitsandbytes 0.50, in float64.

    x [tokens, in]: values from the threshold on are no part of a token's largest; their channels
    multiply dequantized weights.
    """
    x, weight = x.double(), weight.double()
    rows = weight.abs().amax(1, keepdim=True)
    codes = torch.round(weight * (127 / rows))
    outliers = (x.abs() >= threshold) & (threshold > 0)
    channels = outliers.any(0)
    inside = x.masked_fill(outliers, 0)
    tokens = inside.abs().amax(1, keepdim=True)
    rounded = torch.round(inside * (127 / tokens))
    rounded[:, channels] = 0
    product = (rounded @ codes.T) * tokens * rows.T / 127**2
    return product + x[:, channels] @ (codes * rows / 127)[:, channels].T + bias.double(), channels


@pytest.mark.parametrize("threshold", [0.0, 3.0, 6.0, 100.0])
def test_a_linear_computes_what_bitsandbytes_does(threshold):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of other weights some products lie between two codes
        linear = nn.Linear(96, 40)
    x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(0))
    x[0, :, 5] *= 8  # outliers of the first sequence alone
    int8 = Int8Linear(linear, threshold)
    with torch.no_grad(), counted_outliers(int8) as found:
        product = int8(x)
    counted = torch.zeros(96, dtype=torch.int64)
    for sequence, given in zip(product, x, strict=True):
        wanted, channels = as_bitsandbytes(given, linear.weight, linear.bias, threshold)
        assert (sequence - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        counted += channels
    assert torch.equal(found[""].channels, counted)
    assert found[""].sequences == 2
    assert int8.outliers is None
    if threshold == 6:
        assert counted[5] == 1
        assert (product - linear(x)).abs().max() < 0.02 * linear(x).abs().max()


def test_zeros_stay_zeros():
    int8 = Int8Linear(nn.Linear(8, 4, bias=False), 6.0)
    assert (int8(torch.zeros(1, 3, 8)) == 0).all()


def test_all_linears_but_the_head_are_replaced():
    model = run_in_int8(tiny_llama())
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["lm_head"] is nn.Linear
    assert sum(kind is Int8Linear for kind in kinds.values()) == 14
    assert nn.Linear not in [kind for name, kind in kinds.items() if name != "lm_head"]


@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_other_families_run(name):
    model = tiny_model(name)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids).logits
        after = run_in_int8(model)(ids).logits
    assert 0 < (after - before).abs().max() < 0.2 * before.abs().max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


def test_it_is_evaluated_beside_the_float_model(folder, tmp_path):
    models = [str(folder), mlcalib.LLMInt8(str(folder), 2.0)]
    options = {"tokens": 128, "seq_len": 64, "fidelity": True, "progress": False}
    rows = mlcalib.evaluate(models, "en,sw", "sample", **options, cache=tmp_path / "cache")
    found = {(r.method, r.language, r.metric): r.value for r in rows}
    assert found["llm_int8", "en", "kl"] > 0
    assert 0 < found["llm_int8", "sw", "outlier_share"] < 1
    assert found["llm_int8", "sw", "outlier_channels"] > found["llm_int8", "sw", "outlier_share"]
    assert 0 < found["llm_int8", "sw", "outlier_linears"] <= 1
    assert ("float", "en", "outlier_share") not in found
    again = mlcalib.evaluate(models, "en,sw", "sample", **options, cache=tmp_path / "cache")
    assert [row.value for row in again] == [row.value for row in rows]
    other = Subject(mlcalib.LLMInt8(str(folder), 3.0))
    cache = mlcalib.evaluation.Cache(tmp_path / "cache")
    prints = {each.fingerprint(cache) for each in (*map(Subject, models), other)}
    assert len(prints) == 3
    with pytest.raises(ValueError, match="could not tell them apart"):
        mlcalib.evaluate([models[1], mlcalib.LLMInt8(str(folder), 3.0)], "en", "sample", **options)


def test_rows_are_means_over_linears_and_windows():
    found = {
        "en": {
            "a": Outliers(torch.tensor([4, 0, 2, 0]), 4),
            "b": Outliers(torch.zeros(8, dtype=torch.int64), 4),
        }
    }
    rows = outlier_rows(found, "m", "llm_int8", "none")
    values = {row.metric: row.value for row in rows}
    assert values == {
        "outlier_channels": 0.75, "outlier_share": 1.5 / 4 / 2, "outlier_linears": 0.5
    }  # fmt: skip
    assert {(row.task, row.language, row.n) for row in rows} == {("llm_int8", "en", 4)}


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold is -1"):
        mlcalib.LLMInt8("model", -1)
