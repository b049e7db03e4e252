"""Mistakes become Python's own errors, with what was given, what was expected and what to do."""

import pickle
import re

import pytest
import torch
from core_data import random_gram, random_weight

from mlcalib import _core as core

W = random_weight(4, 64)
G = random_gram(64)
SPEC = core.GridSpec(4, 32)
GRID = core.fit_grid(W, SPEC)
CODES = core.quantize(W, GRID)
LINEAR = core.QuantizedLinear(CODES, GRID)
PACKED = core.pack(CODES, 4)


def with_nan(tensor):
    tensor = tensor.clone()
    tensor[2, 5] = float("nan")
    return tensor


def indefinite():
    gram = G.clone()
    gram[3, 40] = gram[40, 3] = 100 * gram.diagonal().max()
    return gram


def gram_statistic(channels=64):
    return core.make_statistic("gram", channels)


VALUE_ERRORS = [
    (lambda: core.GridSpec(bits=9), "bits is 9, expected 2 to 8"),
    (lambda: core.GridSpec(bits=1), "bits is 1, expected 2 to 8"),
    (lambda: core.GridSpec(group_size=0), "group_size is 0, expected a positive number"),
    (lambda: core.GridSpec(range="best"), "range is 'best', expected 'minmax', 'mse', 'gram' or"),
    (lambda: core.GridSpec(scale_dtype=torch.float64), "expected float32, bfloat16 or float16"),
    (lambda: core.GptqOptions(damp=0), "damp is 0, expected a positive fraction"),
    (lambda: core.GptqOptions(damp=float("nan")), "damp is nan"),
    (lambda: core.GptqOptions(block=0), "block is 0, expected a positive number"),
    (lambda: core.GptqOptions(order="size"), "order is 'size', expected 'activation' or 'natural'"),
    (lambda: core.GptqOptions(static_grid=False), "static_grid=False .* order='natural'"),
    (lambda: core.fit_grid(W[0], SPEC), r"weight has shape \[64\], expected a matrix \[out, in\]"),
    (lambda: core.fit_grid(W[:0], SPEC), r"weight has shape \[0, 64\], expected at least one row"),
    (lambda: core.fit_grid(with_nan(W), SPEC), r"weight holds 1 NaN or Inf of 256 .* \[2, 5\]"),
    (lambda: core.fit_grid(W, core.GridSpec(range="gram")), "range='gram' needs .* pass gram="),
    (
        lambda: core.fit_grid(W * 1e7, core.GridSpec(scale_dtype=torch.float16)),
        "a scale of up to .* does not fit Half; use",
    ),
    (lambda: core.quantize(W[:3], GRID), r"weight has shape \[3, 64\] but the grid's scale"),
    (lambda: core.dequantize(CODES[:, :32], GRID), r"codes has shape \[4, 32\]"),
    (lambda: core.rtn(W, SPEC, G[:32, :32]), r"gram has shape \[32, 32\], expected \[64, 64\]"),
    (lambda: core.rtn(W, SPEC, with_nan(G)), "gram holds 1 NaN or Inf"),
    (lambda: core.losses(W[:3], LINEAR, [G]), r"weight has shape \[3, 64\] but the codes"),
    (lambda: core.losses(W, LINEAR, [G, G[:32, :32]]), r"gram has shape \[32, 32\]"),
    (lambda: core.gptq([], G), "weights is empty"),
    (lambda: core.gptq([W, W[:, :32]], G), "64 and 32 input channels"),
    (lambda: core.gptq(W, G[:32]), r"gram has shape \[32, 64\], expected \[64, 64\]"),
    (lambda: core.gptq(W, with_nan(G)), r"gram holds 1 NaN or Inf .* \[2, 5\]"),
    (lambda: core.gptq(with_nan(W), G), "weight holds 1 NaN or Inf"),
    (lambda: core.gptq(W, torch.zeros(64, 64)), "the Gram is zero: .* round it with rtn"),
    (lambda: core.pack(CODES, 9), "bits is 9, expected 2 to 8"),
    (lambda: core.pack(CODES[0], 4), r"codes have shape \[64\], expected \[rows, cols\]"),
    (lambda: core.unpack(PACKED, 4, 65), r"expected \[rows, 9\] for 65 columns of 4 bits"),
    (lambda: core.make_statistic("mean", 4), "Unknown statistic 'mean'. Available: .*gram"),
    (lambda: gram_statistic(0), "channels is 0, expected a positive number"),
    (lambda: gram_statistic(4).update(torch.ones(3, 5)), r"\[3, 5\], expected \[..., 4\]"),
    (lambda: gram_statistic(4).update(torch.tensor(1.0)), r"expected \[..., 4\]"),
    (lambda: gram_statistic(4).merge(gram_statistic(5)), "5 channels into gram of 4 channels"),
    (lambda: gram_statistic().merge(gram_statistic(), float("inf")), "weight is inf"),
    (lambda: gram_statistic(4).load({"gram": torch.zeros(4, 4)}), "needs 'tokens', one number"),
    (lambda: gram_statistic(4).load({"tokens": torch.tensor(1.0)}), "lacks the tensor 'gram'"),
    (lambda: gram_statistic(4).load(gram_statistic(5).state()), r"\[5, 5\], expected .*\[4, 4\]"),
    (
        lambda: gram_statistic().load(gram_statistic().state() | {"mean": G}),
        "unknown tensor 'mean'",
    ),
    (
        lambda: core.packed_linear(torch.ones(2, 60), core.pack_linear(LINEAR), 4, 64, SPEC),
        r"x has shape \[2, 60\], expected \[..., 64\], the columns of the packed weight",
    ),
]

TYPE_ERRORS = [
    (lambda: core.fit_grid(W.double(), SPEC), "weight is Double, expected float32, bfloat16 or"),
    (lambda: core.fit_grid(W.int(), SPEC), "weight is Int"),
    (lambda: core.gptq(W, G.double()), r"gram is Double, expected float32; .* \.float\(\)"),
    (lambda: core.gptq(W.double(), G), "weight is Double"),
    (lambda: core.dequantize(CODES.int(), GRID), "codes are Int, expected uint8"),
    (
        lambda: core.quantize(W, core.Grid(GRID.scale, GRID.zero.float(), SPEC)),
        "zero Float, expected float32 and uint8",
    ),
    (lambda: core.pack(CODES.int(), 4), "codes are Int, expected uint8"),
    (lambda: core.unpack(PACKED.long(), 4, 64), "packed codes are Long, expected int32"),
    (lambda: gram_statistic().update(W.double()), "x is Double, expected float32, bfloat16"),
    (lambda: core.GridSpec(bits="4"), "incompatible constructor arguments"),
    (lambda: core.GridSpec(bits=4.5), "incompatible constructor arguments"),
    (lambda: core.rtn(W, 4), "incompatible function arguments"),
    (lambda: core.update([None], W), "a statistic is None, expected those of make_statistic"),
    (lambda: core.update([gram_statistic(), None], W), "a statistic is None"),
    (lambda: core.losses(W, [None]), "a Gram is None, expected"),
    (lambda: core.losses(W, LINEAR, [None]), "incompatible function arguments"),
    (core.Statistic, "No constructor defined"),
    (lambda: pickle.dumps(core.Grid(torch.ones(1, 1), torch.ones(1, 1).byte(), SPEC)), "pickle"),
]

META = W.to("meta")
MISSING_KERNELS = [
    (lambda: core.fit_grid(META, SPEC), "fit_grid"),
    (lambda: core.rtn(META, SPEC), "fit_grid"),
    (lambda: core.gptq(META, G), "gptq"),
    (lambda: core.quantize(META, GRID), "quantize"),
    (lambda: core.dequantize(CODES.to("meta"), GRID), "dequantize"),
    (lambda: core.pack(CODES.to("meta"), 4), "pack"),
    (lambda: core.unpack(PACKED.to("meta"), 4, 64), "unpack"),
    (lambda: gram_statistic().update(META), "gram_sums"),
]

LINALG_ERRORS = [
    (lambda: core.gptq(W, indefinite()), r"even with damping 1 \(asked: 0.01\)"),
    (lambda: core.gptq(W, -G), "its diagonal goes down to -"),
]


def patterns(cases):
    return [
        pytest.param(call, message, id=re.sub(r"[^\w ,=]", "", message)) for call, message in cases
    ]


def raised(error, call, message):
    """The error, which is of the very type and shows nothing of C++."""
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert "Exception raised from" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("call", "message"), patterns(VALUE_ERRORS))
def test_value_errors(call, message):
    raised(ValueError, call, message)


@pytest.mark.parametrize(("call", "message"), patterns(TYPE_ERRORS))
def test_type_errors(call, message):
    raised(TypeError, call, message)


@pytest.mark.parametrize(("call", "kernel"), patterns(MISSING_KERNELS))
def test_not_implemented_errors(call, kernel):
    raised(
        NotImplementedError, call, f"the kernel {kernel} has no .* device meta; move the tensors"
    )


@pytest.mark.parametrize(("call", "message"), patterns(LINALG_ERRORS))
def test_linalg_errors(call, message):
    raised(torch.linalg.LinAlgError, call, message)


def test_a_refused_state_changes_nothing():
    statistic = gram_statistic()
    statistic.update(W)
    before = statistic.state()
    raised(ValueError, lambda: statistic.load({"gram": G}), "needs 'tokens'")
    assert statistic.tokens == 4
    assert torch.equal(statistic.state()["gram"], before["gram"])


def test_specs_and_results_are_read_only():
    for call in (
        lambda: setattr(SPEC, "bits", 3),
        lambda: setattr(LINEAR, "loss", 0.0),
        lambda: setattr(core.GptqOptions(), "damp", 1.0),
    ):
        with pytest.raises(AttributeError):
            call()
