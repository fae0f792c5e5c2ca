"""What one pass over the data can say of the channels at one place.

Each is a frozen value with ``of(seen)``, what one batch says, and ``merge(other)``, what two batches say together.
The result does not depend on how samples fall into batches, and its size not on how many there are. Sums are float64,
means and variances are merged by Chan, Golub, LeVeque 1979: ``M2 = M2a + M2b + d^2 na nb / n``. One row in
``STATISTICS`` for each; a criterion asks for them by name.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from slim_model.ranking.evidence.histogram import Histogram
from slim_model.ranking.evidence.sampling import places
from slim_model.ranking.evidence.seen import WAITING, Patch, Seen


class Statistic(Protocol):
    @classmethod
    def of(cls, seen: Seen) -> Self: ...

    def merge(self, other: Self) -> Self: ...


@dataclass(frozen=True, slots=True)
class Moments:
    """Per channel over samples and positions: ``count``, ``mean``, ``m2`` (sum of squared deviations)."""

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, seen: Seen) -> Moments:
        values = seen.values.double()
        mean = values.mean((0, 2))
        return cls(values.shape[0] * values.shape[2], mean, (values - mean[:, None]).square().sum((0, 2)))

    def merge(self, other: Moments) -> Moments:
        count, delta = self.count + other.count, other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        return Moments(count, mean, self.m2 + other.m2 + delta.square() * (self.count * other.count / count))

    @property
    def variance(self) -> Tensor:
        return self.m2 / self.count


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
    """Moments of each map's largest value (its fire score, Tian 2017), by class: ``ids (K,)``, ``count (K,)``,
    ``mean`` and ``m2 (K, channel)``. The first samples wait, as pairs (values, labels), to be counted together."""

    ids: Tensor
    count: Tensor
    mean: Tensor
    m2: Tensor
    waiting: tuple[tuple[Tensor, Tensor], ...] = ()

    @classmethod
    def of(cls, seen: Seen) -> Classes:
        assert seen.labels is not None
        fire = seen.values.amax(2).cpu()
        none = torch.zeros(0, fire.shape[1], dtype=torch.float64)
        return cls(seen.labels.cpu()[:0], none[:, 0], none, none, ((fire, seen.labels.cpu()),))

    def merge(self, other: Classes) -> Classes:
        waiting = (*self.waiting, *other.waiting)
        if sum(len(labels) for _, labels in waiting) <= WAITING:
            both = self if not len(other.ids) else other if not len(self.ids) else self._joined(other)
            return dataclasses.replace(both, waiting=waiting)
        return self.counted()._joined(other.counted())

    def counted(self) -> Classes:
        """The same with nothing waiting."""
        if not self.waiting:
            return self
        fire = torch.cat([values for values, _ in self.waiting]).double()
        ids, member = torch.unique(torch.cat([labels for _, labels in self.waiting]), return_inverse=True)
        count = torch.bincount(member, minlength=len(ids)).double()
        mean = fire.new_zeros(len(ids), fire.shape[1]).index_add_(0, member, fire) / count[:, None]
        m2 = torch.zeros_like(mean).index_add_(0, member, (fire - mean[member]).square())
        return dataclasses.replace(self, waiting=())._joined(Classes(ids, count, mean, m2))

    def _joined(self, other: Classes) -> Classes:
        ids = torch.unique(torch.cat([self.ids, other.ids]))
        a, b = self._spread(ids), other._spread(ids)
        count, delta = a.count + b.count, b.mean - a.mean
        share = (b.count / count)[:, None]
        return Classes(ids, count, a.mean + delta * share, a.m2 + b.m2 + delta.square() * a.count[:, None] * share)

    def _spread(self, ids: Tensor) -> Classes:
        at = torch.searchsorted(ids, self.ids)
        count, mean, m2 = (
            x.new_zeros(len(ids), *x.shape[1:]).index_copy_(0, at, x) for x in (self.count, self.mean, self.m2)
        )
        return Classes(ids, count, mean, m2)


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
class Covariance:
    """``scatter (channel, channel)``: sum of products of deviations from ``mean``, at ``SAMPLED`` positions a map."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, seen: Seen) -> Covariance:
        at = places(seen.first, seen.values.shape[0], seen.values.shape[2]).to(seen.values.device)
        chosen = seen.values.gather(2, at[:, None].expand(-1, seen.values.shape[1], -1))
        rows = chosen.transpose(1, 2).flatten(0, 1).double()
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: Covariance) -> Covariance:
        count, delta = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.count * other.count / count)
        return Covariance(count, self.mean + delta * (other.count / count), scatter)


@dataclass(frozen=True, slots=True)
class Contributions:
    """What each channel adds to the outputs of the layers that read it: ``gram (channel, channel)`` of
    ``x_c = sum_taps W[o, c] X[c]`` over outputs o and sampled positions; ``centred``: the same of the deviations
    from each output's mean."""

    count: int
    mean: tuple[Tensor, ...]
    gram: Tensor
    centred: Tensor

    @classmethod
    def of(cls, seen: Seen) -> Contributions:
        parts = [_contributed(patch) for patch in seen.patches()]
        means = tuple(mean for _, _, mean, _ in parts)
        gram = torch.stack([gram for _, gram, _, _ in parts]).sum(0)
        return cls(parts[0][0], means, gram, torch.stack([centred for *_, centred in parts]).sum(0))

    def merge(self, other: Contributions) -> Contributions:
        count = self.count + other.count
        deltas = [b - a for a, b in zip(self.mean, other.mean, strict=True)]
        between = torch.stack([d.T @ d for d in deltas]).sum(0) * (self.count * other.count / count)
        mean = tuple(a + d * (other.count / count) for a, d in zip(self.mean, deltas, strict=True))
        return Contributions(count, mean, self.gram + other.gram, self.centred + other.centred + between)


def _contributed(patch: Patch, memory: int = 1 << 22) -> tuple[int, Tensor, Tensor, Tensor]:
    """(positions, gram, mean (out, channel), centred gram), a few outputs at a time."""
    positions, channels, _ = patch.inputs.shape
    inputs, weights = patch.inputs.double(), patch.weights.double()
    gram, centred, means = inputs.new_zeros(channels, channels), inputs.new_zeros(channels, channels), []
    for some in weights.split(max(1, memory // max(1, positions * channels))):
        added = torch.einsum("sct,oct->osc", inputs, some)
        mean = added.mean(1, keepdim=True)
        means.append(mean[:, 0])
        around = (added - mean).flatten(0, 1)
        centred += around.T @ around
        gram += positions * means[-1].T @ means[-1]
    return positions, gram + centred, torch.cat(means), centred


@dataclass(frozen=True, slots=True)
class Correlations:
    """Both sides of each layer that reads: inputs ``(channel, tap)`` against outputs ``(out,)``."""

    parts: tuple[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, seen: Seen) -> Correlations:
        return cls(tuple(_crossed(patch) for patch in seen.patches()))

    def merge(self, other: Correlations) -> Correlations:
        return Correlations(tuple(_joined(a, b) for a, b in zip(self.parts, other.parts, strict=True)))

    def absolute(self) -> list[Tensor]:
        """For each reader ``(channel, tap, out)``: |r|, and 0 where one side never changes."""
        found = []
        for _, _, _, xx, yy, xy in self.parts:
            scale = (xx[..., None] * yy).sqrt()
            found.append(torch.where(scale > 0, xy.abs() / scale, 0.0).clamp(max=1))
        return found


def _crossed(patch: Patch) -> tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, y = patch.inputs.double(), patch.outputs.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    dx, dy = x - mean_x, y - mean_y
    return len(x), mean_x, mean_y, dx.square().sum(0), dy.square().sum(0), torch.einsum("sct,so->cto", dx, dy)


def _joined(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, dx, dy = a[0] + b[0], b[1] - a[1], b[2] - a[2]
    weight, share = a[0] * b[0] / count, b[0] / count
    sums = (dx.square(), dy.square(), dx[..., None] * dy)
    xx, yy, xy = (left + right + d * weight for left, right, d in zip(a[3:], b[3:], sums, strict=True))
    return count, a[1] + dx * share, a[2] + dy * share, xx, yy, xy


STATISTICS: dict[str, type[Any]] = {
    "moments": Moments,
    "zeros": Zeros,
    "histogram": Histogram,
    "classes": Classes,
    "ranks": Ranks,
    "covariance": Covariance,
    "contributions": Contributions,
    "correlations": Correlations,
}


def together(parts: list[Any]) -> Any:
    """One statistic from those of several batches or machines."""
    return functools.reduce(lambda a, b: a.merge(b), parts)
