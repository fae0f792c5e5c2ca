"""What channels have in common by their filters alone, no data seen.

Let all that a layer takes in be normal and independent. Then the sums u of two filters v, w have the correlation
``r = vw / |v||w|``, and with ``relu(m + |v| z) = sum a_n He_n(z) / sqrt(n!)`` in Hermite polynomials, the product of
what two channels hand on has the mean ``sum a_n b_n r^n`` (Mehler's formula; for means of 0 this is the arc-cosine
kernel of Cho, Saul 2009).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_TERMS = 24
_NODES = 96


def expected_products(filters: Tensor, mean: Tensor, *, rectified: bool = True) -> tuple[Tensor, Tensor]:
    """``filters (channel, rest)``, ``mean (channel,)`` of their sums -> means ``(channel,)`` and expected products
    ``(channel, channel)`` of the channels, float64. ``[[1, 0], [0, 1]]`` rectified: means 0.399, squares 0.5, product
    0.159."""
    filters = filters.double()
    norm = filters.norm(dim=1)
    unit = filters / norm.clamp(min=1e-300)[:, None]
    correlation = (unit @ unit.T).clamp(-1, 1)
    if not rectified:
        return mean.double(), correlation * norm[:, None] * norm + mean.double()[:, None] * mean.double()
    if not mean.any():
        return norm / math.sqrt(2 * math.pi), _arc_cosine(correlation) * norm[:, None] * norm
    terms = _expanded(mean.double(), norm)
    total, power = torch.zeros_like(correlation), torch.ones_like(correlation)
    for term in terms.unbind(1):
        total += term[:, None] * term * power
        power = power * correlation
    return terms[:, 0], total


def _arc_cosine(correlation: Tensor) -> Tensor:
    angle = torch.acos(correlation)
    return (angle.sin() + (math.pi - angle) * correlation) / (2 * math.pi)


def _expanded(mean: Tensor, deviation: Tensor) -> Tensor:
    """``(channel, n)`` coefficients of a rectified normal."""
    points, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(_NODES))
    values = (mean[:, None] + deviation[:, None] * points).clamp(min=0) * weights / math.sqrt(2 * math.pi)
    basis = [torch.ones_like(points), points]
    for n in range(2, _TERMS):
        basis.append((points * basis[-1] - math.sqrt(n - 1) * basis[-2]) / math.sqrt(n))
    return values @ torch.stack(basis).T
