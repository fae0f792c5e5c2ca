"""Losses by hand."""

from __future__ import annotations

import math

import pytest
import torch

from slim_model.data.loss import distillation


def test_distillation_by_hand() -> None:
    """The sum written out, over classes; of one logit, over two."""
    own, taught = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [2.0, 2.0, -1.0]])
    for T in (1.0, 4.0):
        total = 0.0
        for s, t in zip(own.tolist(), taught.tolist(), strict=True):
            q, p = ([math.exp(x / T) for x in row] for row in (s, t))
            total += sum((b / sum(p)) * math.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p, strict=True))
        assert float(distillation([own], [taught], T)) == pytest.approx(T**2 * total / 2, rel=1e-5)
    assert float(distillation([torch.zeros(1, 2)], [torch.tensor([[math.log(3), 0.0]])], 1.0)) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    p, q = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(1.0))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    for shape in ((1,), (1, 1)):
        found = distillation([torch.full(shape, -1.0)], [torch.full(shape, 2.0)], 1.0)
        assert float(found) == pytest.approx(expected, rel=1e-5)
    pair = [torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])], [torch.tensor([1.0, 5.0]), torch.tensor([0.0, 1.0])]
    assert float(distillation(*pair, 4.0)) == pytest.approx((2.0 / 8.0 + 0.0) / 2)
