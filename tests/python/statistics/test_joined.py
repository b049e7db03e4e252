"""Updates that wait until there are enough tokens."""

import pytest
import torch
from core_data import activations
from hypothesis import given
from hypothesis import strategies as st

from mlcalib.statistics import StatisticSet
from mlcalib.statistics.joined import JoinedUpdates, tokens_at_once

KINDS = ("gram", "moments", "deviation")
SIZE = 10


class Recorder(StatisticSet):
    """Remembers the number of tokens of each update."""

    def __init__(self):
        super().__init__(KINDS, 4)
        self.sizes = []

    def update(self, x, reference=None):
        self.sizes.append(len(x))
        super().update(x, reference)


def equal(one, other):
    return all(
        torch.equal(tensor, other.state(kind)[key])
        for kind in KINDS
        for key, tensor in one.state(kind).items()
    )


def text(tokens):
    x = activations(tokens, 4)
    return x, 2 * x + 1


@given(st.lists(st.integers(0, 35), max_size=8))
def test_what_an_update_has_depends_on_the_text_alone(pieces):
    x, reference = text(max(sum(pieces), 1))
    joined = JoinedUpdates(recorder := Recorder(), SIZE)
    lengths = [*pieces, len(x) - sum(pieces)]
    for piece, like in zip(x.split(lengths), reference.split(lengths), strict=True):
        joined.update(piece, like)
    found = joined.finish()
    assert found is recorder
    assert found.tokens == len(x)
    assert all(size == SIZE for size in recorder.sizes[:-1])
    wanted = StatisticSet(KINDS, 4)
    for part, like in zip(x.split(SIZE), reference.split(SIZE), strict=True):
        wanted.update(part, like)
    assert equal(found, wanted)


def test_none_adds_each_piece_as_it_comes():
    x, reference = text(30)
    joined = JoinedUpdates(recorder := Recorder(), None)
    for piece, like in zip(x.split(4), reference.split(4), strict=True):
        joined.update(piece, like)
    assert recorder.sizes == [4] * 7 + [2]
    assert joined.finish().tokens == 30


def test_a_copy_has_the_bits_of_a_text_of_its_own_and_what_goes_on_too():
    x, reference = text(46)
    going_on = JoinedUpdates(StatisticSet(KINDS, 4), SIZE)
    going_on.update(x[:17], reference[:17])
    copied = going_on.copy()
    copied.update(x[17:25], reference[17:25])
    going_on.update(x[17:], reference[17:])
    for found, tokens in ((copied, 25), (going_on, 46)):
        own = JoinedUpdates(StatisticSet(KINDS, 4), SIZE)
        own.update(x[:tokens], reference[:tokens])
        assert equal(found.finish(), own.finish())


def test_what_waits_is_not_what_the_model_writes_over():
    x, reference = text(8)
    joined = JoinedUpdates(StatisticSet(KINDS, 4), SIZE)
    written, like = x.clone(), reference.clone()
    joined.update(written, like)
    written.zero_()
    like.zero_()
    wanted = StatisticSet(KINDS, 4)
    wanted.update(x, reference)
    assert equal(joined.finish(), wanted)


def test_the_cpu_joins_nothing_and_a_gpu_what_one_product_sums():
    assert tokens_at_once(torch.device("cpu")) is None
    assert tokens_at_once(torch.device("cuda", 1)) == 4096


def test_nan_is_found_when_its_tokens_are_added():
    joined = JoinedUpdates(StatisticSet(("gram",), 4), SIZE)
    x, _ = text(6)
    x[2, 3] = torch.nan
    joined.update(x)
    with pytest.raises(ValueError, match="1 NaN or Inf"):
        joined.finish()
