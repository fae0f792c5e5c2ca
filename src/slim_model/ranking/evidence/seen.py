"""What statistics are fed with: values of channels, and patches in front of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

WAITING = 1024
"""Samples that histograms and classes hold before they count them: many at once is faster."""


@dataclass(frozen=True, slots=True)
class Patch:
    """``inputs (s, channel, tap)`` and ``weights (out, channel, tap)``: a layer at s sampled positions of its output
    sums their products over channels and taps; ``outputs (s, out)`` are its values there."""

    inputs: Tensor
    weights: Tensor
    outputs: Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """One batch at one read site. ``values``: ``(sample, channel, position)``; ``grid``: height and width of a map;
    ``before``: the same ahead of a smooth activation; ``first``: the running number of the first sample."""

    values: Tensor
    grid: tuple[int, int]
    before: Tensor | None
    labels: Tensor | None
    first: int
    patches: Callable[[], tuple[Patch, ...]]

    def pooled(self) -> Tensor:
        """``(sample, channel)`` means over positions: of one map in the model's precision, which is six times faster
        than in float64 and as precise as the map; all that runs over samples is float64."""
        return self.values.mean(2).double()
