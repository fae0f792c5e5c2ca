"""Means, and sums of products of the deviations from them, of data that comes in parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """``count`` observations of one or several quantities: the mean of each, and ``spreads``, the sums over the
    observations of what ``products`` makes of the deviations from these means. This one keeps means alone.

    ``count`` is a number, or a tensor that spreads over the means where their rows were observed unequally often.
    """

    count: int | Tensor
    means: tuple[Tensor, ...]
    spreads: tuple[Tensor, ...] = ()

    @staticmethod
    def products(*deviations: Tensor) -> tuple[Tensor, ...]:
        """One for each of ``spreads``, of a deviation from each of ``means``."""
        return ()

    def merge(self, other: Self) -> Self:
        """Of the observations of both, as if they had been made at once.

        Chan, Golub, LeVeque 1979: ``S = Sa + Sb + products(b - a) na nb / n``, where ``a`` and ``b`` are the means.
        Of {0, 2} and {4}: the means 1 and 4 give 2, the squares 2 and 0 give ``2 + 0 + 9 * 2 * 1 / 3 = 8``.
        """
        count = self.count + other.count
        share, weight = other.count / count, self.count * other.count / count
        deltas = [theirs - own for own, theirs in zip(self.means, other.means, strict=True)]
        means = tuple(own + delta * share for own, delta in zip(self.means, deltas, strict=True))
        between = self.products(*deltas)
        spreads = tuple(
            a + b + product * weight for a, b, product in zip(self.spreads, other.spreads, between, strict=True)
        )
        return dataclasses.replace(self, count=count, means=means, spreads=spreads)


@dataclass(frozen=True, slots=True)
class Variances(Moments):
    """Of each number alone: ``m2``, the sum of squared deviations, has the shape of ``mean``."""

    @staticmethod
    def products(*deviations: Tensor) -> tuple[Tensor, ...]:
        return tuple(delta.square() for delta in deviations)

    @property
    def mean(self) -> Tensor:
        return self.means[0]

    @property
    def m2(self) -> Tensor:
        return self.spreads[0]

    @property
    def variance(self) -> Tensor:
        return self.m2 / self.count


@dataclass(frozen=True, slots=True)
class Covariances(Moments):
    """Of all pairs along the last axis of ``mean (..., n)``: ``scatter (..., n, n)``, the sum of products of their
    deviations."""

    @staticmethod
    def products(*deviations: Tensor) -> tuple[Tensor, ...]:
        return tuple(delta[..., :, None] * delta[..., None, :] for delta in deviations)

    @property
    def mean(self) -> Tensor:
        return self.means[0]

    @property
    def scatter(self) -> Tensor:
        return self.spreads[0]
