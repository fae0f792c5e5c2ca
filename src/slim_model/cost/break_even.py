"""Ranks of factored layers among the groups of a plan: how many of them can be left, and what a share of them is.

With r ranks a factored layer costs r times what one rank does; at its break-even that is what the one layer costs. A
plan leaves it fewer, or all: with all it is multiplied back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slim_model.cost.counted import CostModel, Product
from slim_model.coupling.coupling import Coupling
from slim_model.coupling.rank_groups import find_rank_groups


@dataclass(frozen=True, slots=True)
class Ranks:
    """``layer_of``: the groups that are ranks, each with the number of its layer in ``Graph.factored``. ``first``: the
    number of ranks that a layer which is whole goes down to."""

    meter: CostModel
    layer_of: dict[int, int]
    widths: list[int]
    break_even: dict[int, float]
    first: dict[int, int] = field(default_factory=dict)

    def possible(self, group: int, counts: Sequence[int]) -> list[int]:
        """Of these numbers of channels, those with which the group's layer is cheaper factored, or whole."""
        if group not in self.layer_of:
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
        """``counts`` in which each rank is this share of its break-even at the widths that are left. ``keep``: the plan
        with these numbers of channels."""
        whole = [self.widths[g] if g in self.layer_of else max(1, round(count)) for g, count in enumerate(counts)]
        products = self.meter.products(keep(whole))
        return [
            share * _break_even(products[self.layer_of[g]], self.widths[g]) if g in self.layer_of else count
            for g, count in enumerate(counts)
        ]


def ranks_among(coupling: Coupling) -> Ranks | None:
    """The ranks among the groups of ``coupling``; None where no layer is factored."""
    layer_of = find_rank_groups(coupling)
    if not layer_of:
        return None
    meter, widths = CostModel(coupling), [group.width for group in coupling.groups]
    products = meter.products()
    break_even = {group: _break_even(products[layer], widths[group]) for group, layer in layer_of.items()}
    return Ranks(meter, layer_of, widths, break_even)


def _break_even(product: Product, rank: int) -> float:
    """The number of ranks, of ``rank`` in the product as it is, at which it costs what the whole layer does."""
    return rank * product.whole.macs / max(1, sum(factor.macs for factor in product.factors))
