"""What one pass over the data can say of the channels at one read site.

Each is a frozen value with ``of(seen)``, what one batch says, and ``merge(other)``, what two batches say together.
The result does not depend on how samples fall into batches, and its size not on how many there are. Sums are float64,
means and what spreads about them merge as ``Moments`` do. One row in ``STATISTICS`` for each; a criterion asks for them
by name.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from slim_model.ranking.evidence.histogram import Histogram
from slim_model.ranking.evidence.moments import Covariances, Moments, Variances
from slim_model.ranking.evidence.sampling import sample_positions
from slim_model.ranking.evidence.seen import WAITING, Patch, Seen


class Statistic(Protocol):
    """What every row of ``STATISTICS`` can do."""

    @classmethod
    def of(cls, seen: Seen) -> Self: ...

    def merge(self, other: Self) -> Self: ...


@dataclass(frozen=True, slots=True)
class ChannelMoments(Variances):
    """Per channel over samples and positions."""

    @classmethod
    def of(cls, seen: Seen) -> ChannelMoments:
        values = seen.values.double()
        mean = values.mean((0, 2))
        m2 = (values - mean[:, None]).square().sum((0, 2))
        return cls(values.shape[0] * values.shape[2], (mean,), (m2,))


@dataclass(frozen=True, slots=True)
class Zeros:
    """``off``: per channel, how many values are zero (at most zero ahead of a smooth activation), of ``total``."""

    off: Tensor
    total: int

    @classmethod
    def of(cls, seen: Seen) -> Zeros:
        values = seen.values if seen.before is None else seen.before.clamp(min=0)
        on = torch.empty_like(values, memory_format=torch.contiguous_format)
        torch.ne(values, 0, out=on)  # with the product below four times faster than count_nonzero
        counts = (on @ on.new_ones(on.shape[2])).double().sum(0).long()
        total = on.shape[0] * on.shape[2]
        return cls(total - counts.cpu(), total)

    def merge(self, other: Zeros) -> Zeros:
        return Zeros(self.off + other.off, self.total + other.total)


@dataclass(frozen=True, slots=True)
class Classes:
    """Moments of each map's largest value (its fire score, Tian 2017), by class: ``ids (K,)``, ``fired`` with
    ``count (K, 1)``, ``mean`` and ``m2 (K, channel)``. The first samples wait, as pairs (values, labels), to be counted
    together."""

    ids: Tensor
    fired: Variances
    waiting: tuple[tuple[Tensor, Tensor], ...] = ()

    @classmethod
    def of(cls, seen: Seen) -> Classes:
        assert seen.labels is not None
        fire = seen.values.amax(2).cpu()
        none = torch.zeros(0, fire.shape[1], dtype=torch.float64)
        labels = seen.labels.cpu()
        return cls(labels[:0], Variances(none[:, :1], (none,), (none,)), ((fire, labels),))

    def merge(self, other: Classes, *, at_most: int = WAITING) -> Classes:
        """``at_most``: samples that may wait; beyond, all are counted."""
        waiting = (*self.waiting, *other.waiting)
        if sum(len(labels) for _, labels in waiting) <= at_most:
            both = self if not len(other.ids) else other if not len(self.ids) else self._joined(other)
            return dataclasses.replace(both, waiting=waiting)
        return self.counted()._joined(other.counted())

    def counted(self) -> Classes:
        """The same with nothing waiting."""
        if not self.waiting:
            return self
        fire = torch.cat([values for values, _ in self.waiting]).double()
        ids, member = torch.unique(torch.cat([labels for _, labels in self.waiting]), return_inverse=True)
        count = torch.bincount(member, minlength=len(ids)).double()[:, None]
        mean = fire.new_zeros(len(ids), fire.shape[1]).index_add_(0, member, fire) / count
        m2 = torch.zeros_like(mean).index_add_(0, member, (fire - mean[member]).square())
        return dataclasses.replace(self, waiting=())._joined(Classes(ids, Variances(count, (mean,), (m2,))))

    def _joined(self, other: Classes) -> Classes:
        ids = torch.unique(torch.cat([self.ids, other.ids]))
        return Classes(ids, self._spread(ids).merge(other._spread(ids)))

    def _spread(self, ids: Tensor) -> Variances:
        """``fired`` with a row for each of ``ids``, of zeros where the class was not seen."""
        at = torch.searchsorted(ids, self.ids)

        def spread(x: Tensor) -> Tensor:
            return x.new_zeros(len(ids), *x.shape[1:]).index_copy_(0, at, x)

        assert isinstance(self.fired.count, Tensor)
        return Variances(spread(self.fired.count), (spread(self.fired.mean),), (spread(self.fired.m2),))


@dataclass(frozen=True, slots=True)
class Ranks:
    """``total``: sum over samples of the rank of a channel's map (the mean, where it has several), of ``count``."""

    total: Tensor
    count: int
    full: int

    @classmethod
    def of(cls, seen: Seen) -> Ranks:
        maps = seen.values.unflatten(2, (-1, *seen.grid))
        return cls(torch.linalg.matrix_rank(maps).double().mean(2).sum(0), len(maps), min(seen.grid))

    def merge(self, other: Ranks) -> Ranks:
        return Ranks(self.total + other.total, self.count + other.count, self.full)


@dataclass(frozen=True, slots=True)
class Covariance(Covariances):
    """Of all pairs of channels, at ``SAMPLED`` positions a map."""

    @classmethod
    def of(cls, seen: Seen) -> Covariance:
        at = sample_positions(seen.first, seen.values.shape[0], seen.values.shape[2]).to(seen.values.device)
        chosen = seen.values.gather(2, at[:, None].expand(-1, seen.values.shape[1], -1))
        rows = chosen.transpose(1, 2).flatten(0, 1).double()
        mean = rows.mean(0)
        return cls(len(rows), (mean,), ((rows - mean).T @ (rows - mean),))


@dataclass(frozen=True, slots=True)
class Contributions(Moments):
    """What each channel adds to the outputs of the layers that read it, at sampled positions: ``x_c = sum_taps
    W[o, c] X[c]``. ``means (out, channel)`` of each of these layers, and products over all their outputs together."""

    @staticmethod
    def products(*deviations: Tensor) -> tuple[Tensor, ...]:
        return (torch.stack([delta.T @ delta for delta in deviations]).sum(0),)

    @classmethod
    def of(cls, seen: Seen) -> Contributions:
        parts = [_contributed(patch) for patch in seen.patches()]
        centred = torch.stack([centred for _, _, centred in parts]).sum(0)
        return cls(parts[0][0], tuple(mean for _, mean, _ in parts), (centred,))

    @property
    def centred(self) -> Tensor:
        """``(channel, channel)``: the sum of ``(x_c - mean) (x_d - mean)``."""
        return self.spreads[0]

    @property
    def gram(self) -> Tensor:
        """``(channel, channel)``: the sum of ``x_c x_d``."""
        return self.centred + self.products(*self.means)[0] * self.count


def _contributed(patch: Patch, memory: int = 1 << 22) -> tuple[int, Tensor, Tensor]:
    """(positions, mean (out, channel), centred gram), a few outputs at a time."""
    positions, channels, _ = patch.inputs.shape
    inputs, weights = patch.inputs.double(), patch.weights.double()
    centred, means = inputs.new_zeros(channels, channels), []
    for some in weights.split(max(1, memory // max(1, positions * channels))):
        added = torch.einsum("sct,oct->osc", inputs, some)
        mean = added.mean(1, keepdim=True)
        means.append(mean[:, 0])
        around = (added - mean).flatten(0, 1)
        centred += around.T @ around
    return positions, torch.cat(means), centred


@dataclass(frozen=True, slots=True)
class Correlations:
    """Both sides of each layer that reads: inputs ``(channel, tap)`` against outputs ``(out,)``."""

    parts: tuple[_BothSides, ...]

    @classmethod
    def of(cls, seen: Seen) -> Correlations:
        return cls(tuple(_BothSides.of(patch) for patch in seen.patches()))

    def merge(self, other: Correlations) -> Correlations:
        return Correlations(tuple(a.merge(b) for a, b in zip(self.parts, other.parts, strict=True)))

    def absolute(self) -> list[Tensor]:
        """For each reader ``(channel, tap, out)``: |r|, and 0 where one side never changes."""
        correlations = []
        for xx, yy, xy in (part.spreads for part in self.parts):
            scale = (xx[..., None] * yy).sqrt()
            correlations.append(torch.where(scale > 0, xy.abs() / scale, 0.0).clamp(max=1))
        return correlations


@dataclass(frozen=True, slots=True)
class _BothSides(Moments):
    """``means`` of the inputs ``(channel, tap)`` and of the outputs ``(out,)``; squares of each and their products."""

    @staticmethod
    def products(*deviations: Tensor) -> tuple[Tensor, ...]:
        dx, dy = deviations
        return dx.square(), dy.square(), dx[..., None] * dy

    @classmethod
    def of(cls, patch: Patch) -> _BothSides:
        x, y = patch.inputs.double(), patch.outputs.double()
        means = x.mean(0), y.mean(0)
        dx, dy = x - means[0], y - means[1]
        spreads = dx.square().sum(0), dy.square().sum(0), torch.einsum("sct,so->cto", dx, dy)
        return cls(len(x), means, spreads)


STATISTICS: dict[str, type[Statistic]] = {
    "moments": ChannelMoments,
    "zeros": Zeros,
    "histogram": Histogram,
    "classes": Classes,
    "ranks": Ranks,
    "covariance": Covariance,
    "contributions": Contributions,
    "correlations": Correlations,
}


def merge_statistics(parts: list[Any]) -> Any:
    """Merge one statistic of several batches or processes."""
    return functools.reduce(lambda a, b: a.merge(b), parts)
