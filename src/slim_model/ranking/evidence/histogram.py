"""A streaming histogram over floating point exponents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.ranking.evidence.seen import WAITING, Seen

CELLS = 128
"""A histogram has between half of these and all of them across its range, unless that is a single value."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Of the mean of each map. Cells are ``[j, j + 1) * 2^exponent``, with the smallest exponent of a channel for
    which its values fall into ``CELLS`` cells: powers of two nest, so counts stay exact when the range grows.
    ``counts[c, i]`` is of the i-th cell from that of ``low[c]``. The first samples wait as they are, ``(sample,
    channel)``, to be counted together."""

    low: Tensor
    high: Tensor
    counts: Tensor
    waiting: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, seen: Seen) -> Histogram:
        pooled = seen.pooled().cpu()
        infinite = pooled.new_full(pooled.shape[1:], torch.inf)
        return cls(infinite, -infinite, torch.zeros(pooled.shape[1], CELLS, dtype=torch.int64), (pooled,))

    def merge(self, other: Histogram, *, at_most: int = WAITING) -> Histogram:
        """``at_most``: samples that may wait; beyond, all are counted."""
        if sum(map(len, (*self.waiting, *other.waiting))) <= at_most:
            both = self if other._empty else other if self._empty else self._joined(other)
            return dataclasses.replace(both, waiting=(*self.waiting, *other.waiting))
        return self.counted()._joined(other.counted())

    @property
    def _empty(self) -> bool:
        return not bool(torch.isfinite(self.low).any())

    def counted(self) -> Histogram:
        """The same with nothing waiting."""
        if not self.waiting:
            return self
        pooled = torch.cat(self.waiting)
        low, high = pooled.amin(0), pooled.amax(0)
        exponent = _exponent(low, high)
        cells = (_cell(pooled, exponent) - _cell(low, exponent)).T
        fresh = Histogram(low, high, torch.zeros_like(self.counts).scatter_add_(1, cells, torch.ones_like(cells)))
        return fresh if self._empty else dataclasses.replace(self, waiting=())._joined(fresh)

    def _joined(self, other: Histogram) -> Histogram:
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        exponent = _exponent(low, high)
        return Histogram(low, high, self.coarsened(exponent, low) + other.coarsened(exponent, low))

    def coarsened(self, exponent: Tensor, low: Tensor) -> Tensor:
        """Counts in wider cells, the first of which holds ``low``."""
        own = _exponent(self.low, self.high)
        fine = _cell(self.low, own)[:, None] + torch.arange(CELLS)
        cells = (fine >> (exponent - own).clamp(max=62)[:, None]) - _cell(low, exponent)[:, None]
        inside = cells.clamp(0, CELLS - 1)  # cells beyond are empty
        return torch.zeros_like(self.counts).scatter_add_(1, inside, self.counts)

    def shares(self, *, shared_range: bool) -> Tensor:
        """``(channel, CELLS)`` shares of the samples; cells as wide for each channel as the widest needs if shared."""
        whole = self.counted()
        counts = whole.counts
        if shared_range:
            wide = _exponent(whole.low.amin()[None], whole.high.amax()[None]).expand_as(whole.low)
            own = _exponent(whole.low, whole.high)
            counts = whole.coarsened(torch.maximum(wide, own), whole.low)
        return counts / counts.sum(1, keepdim=True)


def _cell(values: Tensor, exponent: Tensor) -> Tensor:
    power = (1023 - exponent.clamp(-1022, 1022)) << 52  # 2^-exponent, exactly
    return torch.floor(values * power.view(torch.float64)).long()


def _exponent(low: Tensor, high: Tensor) -> Tensor:
    """The smallest e for which floor(high / 2^e) - floor(low / 2^e) < CELLS."""
    largest = torch.maximum(low.abs(), high.abs())
    finest = torch.frexp(largest).exponent.long() - 40  # a range far below the values themselves is rounding
    spread = torch.frexp(high - low).exponent.long() - CELLS.bit_length()
    exponent = torch.where(high > low, torch.maximum(spread, finest), finest)
    for _ in range(3):
        exponent = exponent + (_cell(high, exponent) - _cell(low, exponent) >= CELLS).long()
    return exponent
