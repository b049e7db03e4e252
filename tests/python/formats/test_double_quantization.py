"""NF4 whose scales are quantized themselves: as bitsandbytes does it, and as it reads it."""

import json

import pytest
import torch
from core_data import random_gram, random_weight

from mlcalib import _core
from mlcalib._core import GptqOptions, Grid, GridSpec, QuantizedLinear
from mlcalib.checkpoints.held import common_dtype, held_dtype
from mlcalib.formats import formats

FORM = formats.get("bitsandbytes-double")()
STATE = "a.weight.quant_state.bitsandbytes__nf4"


def spec_of(size=64, search="minmax"):
    return GridSpec(4, size, True, search, torch.uint8, "nf4")


def uneven(rows, columns, seed=0):
    """Weights whose rows differ in size, so that their scales spread."""
    generator = torch.Generator().manual_seed(seed)
    return random_weight(rows, columns, seed) * (0.1 + torch.rand(rows, 1, generator=generator))


def solved(search="gram", rows=48, columns=640, **options):
    weight, gram = uneven(rows, columns), random_gram(columns)
    return weight, gram, _core.gptq(weight, gram, GptqOptions(spec_of(64, search), **options))


def reference(scale, offset=None):
    """Double quantization in plain steps: codes, magnitudes, the offset and what they stand for."""
    flat, numbers = scale.flatten(), _core.nested_numbers()
    offset = flat.mean() if offset is None else torch.tensor(offset)
    codes, magnitudes = [], []
    for block in (flat - offset).split(256):
        magnitudes.append(block.abs().max().clamp(min=2.0**-126))
        distance = (block[:, None] / magnitudes[-1] - numbers).abs()
        codes.append(distance.argmin(1))
    values = [numbers[c] * m + offset for c, m in zip(codes, magnitudes, strict=True)]
    return torch.cat(codes), torch.stack(magnitudes), float(offset), torch.cat(values)


def test_numbers_are_those_of_the_dynamic_map():
    """256 in rising order; signs mirror but at the end, and decades have 1, 2, … 64 of each."""
    numbers = _core.nested_numbers()
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers, numbers.sort().values.unique())
    assert (len(numbers), numbers[127], numbers[-1]) == (256, 0, 1)
    assert torch.equal(numbers[:127], -numbers[128:-1].flip(0))
    decades = numbers[128:-1].log10().floor()
    assert [int((decades == d).sum()) for d in range(-7, 0)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("search", ["mse", "gram"])
def test_scales_are_what_blocks_of_256_of_all_rows_stand_for(search):
    weight, gram = uneven(48, 640), random_gram(640)
    grid = _core.fit_grid(weight, spec_of(64, search), gram)
    plain = GridSpec(4, 64, True, search, numbers="nf4")
    _, _, offset, wanted = reference(_core.fit_grid(weight, plain, gram).scale)
    assert grid.spec.global_scale == offset
    assert torch.equal(grid.scale.flatten(), wanted)


@pytest.mark.parametrize("search", ["mse", "gram", "gram_block"])
def test_gptq_chooses_codes_for_the_scales_that_are_stored(search):
    weight, gram, linear = solved(search, refit=1)
    back = FORM.unpack("a", FORM.pack("a", linear), spec_of())
    d = (weight - back.dequantize()).double()
    assert linear.loss == pytest.approx(float((d @ gram.double() * d).sum()), rel=1e-4)
    assert linear.loss < 0.9 * _core.rtn(weight, spec_of(64, search), gram).loss
    # Codes of plain NF4, put on these scales, are worse.
    plain = GridSpec(4, 64, True, search, numbers="nf4")
    other = _core.gptq(weight, gram, GptqOptions(plain))
    grid = _core.fit_grid(weight, spec_of(64, search), gram)
    d = (weight - QuantizedLinear(other.codes, grid).dequantize()).double()
    assert linear.loss < float((d @ gram.double() * d).sum())


def test_weights_solved_together_have_scales_of_their_own():
    first, second, gram = uneven(24, 640, 1), uneven(30, 640, 2) * 4, random_gram(640)
    options = GptqOptions(spec_of(64, "gram"), refit=1)
    both = _core.gptq([first, second], gram, options)
    for weight, found in zip((first, second), both, strict=True):
        alone = _core.gptq(weight, gram, options)
        assert torch.equal(found.codes, alone.codes)
        assert torch.equal(found.grid.scale, alone.grid.scale)
        assert found.grid.spec.global_scale == alone.grid.spec.global_scale
        FORM.pack("a", found)


def test_output_grams_keep_the_order_of_scales():
    weight, gram = uneven(48, 640), random_gram(640)
    (sided,) = _core.gptq([weight], gram, [random_gram(48)], GptqOptions(spec_of(64, "gram")))
    assert torch.equal(sided.grid.scale, solved()[2].grid.scale)
    FORM.pack("a", sided)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("shape", [(200, 640), (3, 128), (1, 128), (64, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpack_returns_what_was_packed(shape, size, dtype):
    linear = _core.rtn(uneven(*shape).to(dtype), spec_of(size))
    tensors = FORM.pack("a", linear)
    codes, magnitudes, _, _ = reference(
        _core.fit_grid(uneven(*shape).to(dtype), GridSpec(4, size, True, numbers="nf4")).scale,
        linear.grid.spec.global_scale,
    )
    assert torch.equal(tensors["a.weight.absmax"], codes.byte())
    assert torch.allclose(tensors["a.weight.nested_absmax"], magnitudes, rtol=2e-6, atol=0)
    config = json.loads(json.dumps(FORM.quantization_config({"a": spec_of()}, "natural", [])))
    form = formats.get("bitsandbytes").of_config(config)
    assert type(form) is type(FORM)
    back = form.unpack("a", tensors, form.read_specs(config, ["a"], dtype)["a"])
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.grid.scale, linear.grid.scale)
    assert back.grid.spec.__getstate__() == linear.grid.spec.__getstate__()
    assert all(torch.equal(tensors[name], each) for name, each in FORM.pack("a", back).items())


def test_equal_scales_and_zeros_are_held():
    for weight in (torch.zeros(4, 64), torch.ones(4, 64), torch.eye(4).repeat(1, 16) * 1e-20):
        linear = _core.rtn(weight, spec_of())
        assert torch.equal(FORM.unpack("a", FORM.pack("a", linear), spec_of()).codes, linear.codes)
        assert torch.allclose(linear.dequantize(), weight, rtol=1e-6, atol=1e-37)


def quantized_by_bitsandbytes(weight, size):
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        weight, blocksize=size, quant_type="nf4", compress_statistics=True
    )
    tensors = {f"a.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    return {"a.weight": packed, **tensors}, functional.dequantize_4bit(packed, state)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
SIZES = pytest.mark.parametrize("size", [64, 128])


@DTYPES
@SIZES
def test_scales_are_quantized_as_by_the_torch_backend_of_bitsandbytes(dtype, size):
    """The kernel of ``backends/default``, which the compiled one of CPUs stands before."""
    pytest.importorskip("bitsandbytes")
    weight = uneven(200, 640, 9).to(dtype)
    scale = _core.fit_grid(weight, GridSpec(4, size, True, numbers="nf4")).scale.flatten()
    codes, magnitudes = torch.ops.bitsandbytes.quantize_blockwise.default._op_dk(
        torch._C.DispatchKey.CompositeExplicitAutograd,
        scale - scale.mean(),
        _core.nested_numbers(),
        256,
    )
    found = FORM.pack("a", _core.rtn(weight, spec_of(size)))
    assert torch.equal(found["a.weight.absmax"], codes)
    assert torch.equal(found["a.weight.nested_absmax"], magnitudes)


@DTYPES
@SIZES
def test_rounding_is_that_of_bitsandbytes(dtype, size):
    """All but codes of scales near ties, where its kernel for CPUs does not take the nearest."""
    weight = uneven(200, 640, 9).to(dtype)
    wanted, _ = quantized_by_bitsandbytes(weight, size)
    found = FORM.pack("a", _core.rtn(weight, spec_of(size)))
    assert found.keys() == wanted.keys()
    absmax = "a.weight.absmax"
    for name in found.keys() - {STATE, absmax}:
        assert torch.equal(found[name], wanted[name]), name
    states = [json.loads(bytes(each[STATE].tolist())) for each in (found, wanted)]
    assert states[0] == {**states[1], "dtype": "float32"}
    scale = _core.fit_grid(weight, GridSpec(4, size, True, numbers="nf4")).scale.flatten()
    magnitudes = found["a.weight.nested_absmax"].repeat_interleave(256)[: len(scale)]
    left = (scale - scale.mean()) / magnitudes
    ours, theirs = (
        (_core.nested_numbers()[each[absmax].long()] - left).abs() for each in (found, wanted)
    )
    assert (found[absmax] == wanted[absmax]).double().mean() >= 0.99
    assert (ours <= theirs).all()
    assert (theirs - ours).max() <= 2**-15


def test_bitsandbytes_reads_what_gptq_chose():
    functional = pytest.importorskip("bitsandbytes.functional")
    linear = solved()[2]
    tensors = {name.removeprefix("a."): each for name, each in FORM.pack("a", linear).items()}
    packed = tensors.pop("weight")
    stripped = {name.removeprefix("weight."): each for name, each in tensors.items()}
    state = functional.QuantState.from_dict(stripped, torch.device("cpu"))
    assert torch.equal(functional.dequantize_4bit(packed, state), linear.dequantize())


def test_what_cannot_be_held_is_refused():
    linear = _core.rtn(uneven(48, 640), spec_of())
    grid = Grid(linear.grid.scale * 1.001, linear.grid.zero, linear.grid.spec)
    with pytest.raises(ValueError, match="a: scales are no sums of an offset and multiples"):
        FORM.pack("a", QuantizedLinear(linear.codes, grid))
    plain = formats.get("bitsandbytes")()
    with pytest.raises(ValueError, match=r"a: its torch\.uint8 scales are not exact in torch\.bf"):
        held_dtype("a", linear.grid, plain, torch.bfloat16)
    with pytest.raises(ValueError, match=r"holds scales in torch\.bfloat16, but another of the"):
        common_dtype([FORM, plain], torch.bfloat16)
    assert common_dtype([FORM, formats.get("dense")()], torch.bfloat16) == torch.uint8
    with pytest.raises(ValueError, match=r"scale_dtype is unsigned char|scale_dtype is Byte"):
        GridSpec(4, 64, True, scale_dtype=torch.uint8)
    with pytest.raises(ValueError, match="static_grid=False fits grids as groups are reached, but"):
        solved(order="natural", static_grid=False)
