"""Dense bit streams, against a loop over bits."""

import core_data  # noqa: F401 (its hypothesis profile)
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcalib import _core as core


@st.composite
def codes_of_bits(draw):
    bits = draw(st.integers(2, 8))
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = (rows, columns)
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator), bits


@given(codes_of_bits())
def test_packed_codes_come_back(drawn):
    codes, bits = drawn
    packed = core.pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (codes.shape[0], -(-codes.shape[1] * bits // 32))
    assert torch.equal(core.unpack(packed, bits, codes.shape[1]), codes)


@given(codes_of_bits())
def test_rows_are_streams_of_bits_lowest_first(drawn):
    codes, bits = drawn
    packed = core.pack(codes, bits)
    for row, words in zip(codes.tolist(), packed.tolist(), strict=True):
        stream = sum(code << (bits * column) for column, code in enumerate(row))
        found = sum((word % 2**32) << (32 * i) for i, word in enumerate(words))
        assert found == stream


@given(codes_of_bits())
def test_layouts_are_no_matter(drawn):
    codes, bits = drawn
    packed = core.pack(codes, bits)
    assert torch.equal(core.pack(codes.T.contiguous().T, bits), packed)
    strided = packed.T.contiguous().T
    assert torch.equal(core.unpack(strided, bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_code_too_large_is_refused(bits):
    codes = torch.zeros(3, 5, dtype=torch.uint8)
    codes[1, 2] = 2**bits
    with pytest.raises(ValueError, match=f"codes go up to {2**bits}, but {bits} bits"):
        core.pack(codes, bits)
