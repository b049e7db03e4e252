"""Losses of changed weights, from Grams or from their diagonals."""

import pytest
import torch
from core_data import activations

from mlcalib.statistics import StatisticSet, losses


def test_where_there_is_no_gram_its_diagonal_is_taken():
    x, change = activations(40, 6), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    whole, diagonal = StatisticSet(("gram",), 6), StatisticSet(("gram", "moments"), 6)
    for each in (whole, diagonal):
        each.update(x)
    diagonal.drop(["gram"])
    gram = (x.T @ x).double()
    exact = float((change.double() @ gram @ change.double().T).trace())
    alone = float((change.double() @ gram.diagonal().diag() @ change.double().T).trace())
    assert abs(exact / alone - 1) > 0.01
    found = losses(change, [diagonal, whole, diagonal])
    assert found == pytest.approx([alone, exact, alone], rel=1e-5)


def test_what_has_neither_is_an_error():
    ranges = StatisticSet(("range",), 6)
    with pytest.raises(KeyError, match="moments"):
        losses(torch.ones(2, 6), [ranges])
