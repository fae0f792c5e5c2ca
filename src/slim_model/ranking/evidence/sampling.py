"""Which positions of a large map are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLED = 64
"""Positions of an image that enter covariances; all of them where there are fewer."""
SUMMED = 10
"""Positions of a layer's output that enter contributions and correlations, as many as in ThiNet."""


def sample_positions(first: int, samples: int, total: int, *, at_most: int = SAMPLED) -> Tensor:
    """``(samples, at_most)`` positions below ``total``: all of them in order, or drawn by the number of the sample."""
    if total <= at_most:
        return torch.arange(total).expand(samples, -1)
    mixed = torch.arange(first, first + samples)[:, None] * 0x9E3779B1 + torch.arange(at_most) * 0x85EBCA6B
    for factor in (0x2C1B3C6D, 0x297A2D39):
        mixed = ((mixed ^ (mixed >> 15)) * factor) & 0x7FFFFFFF
    return (mixed ^ (mixed >> 12)) % total


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which positions of a layer's output are summed: ``at_most`` of each of the ``samples`` of a batch, from number
    ``first`` on."""

    first: int
    samples: int
    at_most: int = SUMMED

    def positions(self, total: int, samples: int | None = None) -> Tensor:
        """``(samples, at_most)`` positions below ``total``; ``samples`` where a layer sees another number of them."""
        return sample_positions(self.first, samples or self.samples, total, at_most=self.at_most)
