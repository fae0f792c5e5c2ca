"""Ranks of factored layers among the groups of a plan: how many of them can be left, and what a share of them is.

With r ranks a factored layer costs r times what one rank does; at its break-even that is what the one layer costs. A
plan leaves it fewer, or all: with all it is multiplied back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slim_model.cost.counted import CostModel, Pays, Product, by_macs
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.rank_groups import InnerAxis, find_rank_groups


@dataclass(frozen=True, slots=True)
class Ranks:
    """``axis_of``: the groups that are ranks. ``break_even``: of each, where the others of its layer are whole.
    ``first``: the number of ranks that a layer which is whole goes down to."""

    meter: CostModel
    axis_of: dict[int, InnerAxis]
    widths: list[int]
    break_even: dict[int, float]
    first: dict[int, int] = field(default_factory=dict)

    def possible(self, group: int, counts: Sequence[int]) -> list[int]:
        """Of these numbers of channels, those with which the group's layer is cheaper factored, or whole."""
        if group not in self.axis_of:
            return list(counts)
        most = self.break_even[group]
        below = [count for count in counts if count < most]
        return [*(below or [1]), self.widths[group]]

    def choose_first(self, values: Sequence[np.ndarray], rungs: Sequence[Sequence[int]]) -> None:
        """Of each rank the rung at which least is lost for what is saved: ``values[g][k]`` is lost if k are kept."""
        for group, most in self.break_even.items():
            *below, _ = rungs[group]
            lost = values[group][below] - values[group][self.widths[group]]
            self.first[group] = below[int(np.argmin(lost / np.maximum(most - np.array(below), 1e-9)))]

    def in_share(self, counts: Sequence[float], share: float, keep: Callable[[list[int]], np.ndarray]) -> list[float]:
        """``counts`` in which each rank is so many that its layer costs this share of what the whole one does at the
        widths that are left. ``keep``: the plan with these numbers of channels."""
        whole = [self.widths[g] if g in self.axis_of else max(1, round(count)) for g, count in enumerate(counts)]
        products = self.meter.products(keep(whole))
        return [
            self.widths[g] * _share_at(products[self.axis_of[g].layer], share) if g in self.axis_of else count
            for g, count in enumerate(counts)
        ]


def ranks_among(coupling: Coupling, pays: Pays = by_macs) -> Ranks | None:
    """The ranks among the groups of ``coupling``; None where no layer is factored. ``pays``: the rule by which layers
    stay so, which says no more often than multiply-adds do."""
    axis_of = find_rank_groups(coupling)
    if not axis_of:
        return None
    meter, widths = CostModel(coupling), [group.width for group in coupling.groups]
    products = meter.products()
    most = {g: widths[g] * _break_even(products[axis.layer], axis.factor) for g, axis in axis_of.items()}
    if pays is not by_macs:
        meter = meter.with_rule(pays)
        most = {g: _least_that_fails(coupling, meter, g, axis_of[g], below) for g, below in most.items()}
    return Ranks(meter, axis_of, widths, most)


def _break_even(product: Product, place: int) -> float:
    """The share of the ranks made by the factor number ``place``, all others being there, at which the factors cost
    what the whole layer does; 0 where they always cost more."""
    macs = [factor.macs for factor in product.factors]
    own = macs[place] + macs[place + 1]
    return max(0.0, (product.whole.macs - (sum(macs) - own)) / max(1, own))


def _least_that_fails(coupling: Coupling, meter: CostModel, group: int, axis: InnerAxis, most: float) -> float:
    """The number of ranks, up to ``most``, from which on the group's layer does not pay by the rule of ``meter``."""
    low, high = 0, math.ceil(most)
    while high - low > 1:
        middle, keep = (low + high) // 2, coupling.keep_all()
        keep[coupling.groups[group].channels[middle:]] = False
        if meter.pays(meter.products(keep)[axis.layer]):
            low = middle
        else:
            high = middle
    return min(high, most)


def _share_at(product: Product, share: float) -> float:
    return share_within([factor.macs for factor in product.factors], share * product.whole.macs)


def share_within(costs: Sequence[float], most: float) -> float:
    """The part of every rank with which factors that cost so much with all of them cost ``most``. What lies between two
    ranks costs by their product: of ``[1, 4, 1]`` a half costs 1/2 + 1 + 1/2, so that 2 gives 1/2."""
    linear, square = costs[0] + costs[-1], sum(costs[1:-1])
    if not square:
        return most / max(linear, 1e-12)
    return (math.sqrt(linear**2 + 4 * square * most) - linear) / (2 * square)
