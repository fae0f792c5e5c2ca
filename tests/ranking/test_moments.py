"""Moments of parts are those of the whole, for every kind of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slim_model.ranking.evidence.moments import Covariances, Moments, Variances


def means(rows: Tensor) -> Moments:
    return Moments(len(rows), (rows.mean(0),))


def variances(rows: Tensor) -> Variances:
    return Variances(len(rows), (rows.mean(0),), (rows.var(0, correction=0) * len(rows),))


def covariances(rows: Tensor) -> Covariances:
    apart = rows - rows.mean(0)
    return Covariances(len(rows), (rows.mean(0),), (torch.einsum("s...i,s...j->...ij", apart, apart),))


@pytest.mark.parametrize("kind", [means, variances, covariances])
@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("sizes", [[40], [1, 39], [20, 1, 1, 18]], ids=str)
def test_of_parts_and_of_all(kind: Callable[[Tensor], Moments], shape: tuple[int, ...], sizes: list[int]) -> None:
    rows = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0)).double() + 1e4
    whole = kind(rows)
    merged = functools.reduce(lambda a, b: a.merge(b), map(kind, rows.split(sizes)))
    assert type(merged) is type(whole)
    assert merged.count == 40
    for one, other in zip((*merged.means, *merged.spreads), (*whole.means, *whole.spreads), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_by_hand() -> None:
    """{0, 2} and {4}: the means are 1 and 4, the squares 2 and 0, and 2 + 0 + (4 - 1)^2 * 2 * 1 / 3 = 8."""
    merged = variances(torch.tensor([0.0, 2.0])).merge(variances(torch.tensor([4.0])))
    assert (float(merged.mean), float(merged.m2), float(merged.variance)) == pytest.approx((2, 8, 8 / 3))


def test_rows_observed_unequally_often() -> None:
    """Row 0 has 1 and 3 observations, row 1 none and 2: what was not seen changes nothing."""
    one = Variances(torch.tensor([[1.0], [0.0]]), (torch.tensor([[4.0], [0.0]]),), (torch.zeros(2, 1),))
    two = Variances(torch.tensor([[3.0], [2.0]]), (torch.tensor([[0.0], [7.0]]),), (torch.tensor([[6.0], [5.0]]),))
    merged = one.merge(two)
    assert torch.equal(torch.as_tensor(merged.count), torch.tensor([[4.0], [2.0]]))
    assert torch.allclose(merged.mean, torch.tensor([[1.0], [7.0]]))
    assert torch.allclose(merged.m2, torch.tensor([[6 + 16 * 3 / 4], [5.0]]))
