"""What is to go and by how much, what an engine is given to choose with, and what it chose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from slim_model.budget.allocations import Allocation, allocation_of
from slim_model.budget.options import BudgetOptions
from slim_model.budget.plan import Plan
from slim_model.budget.sensitivity import Scan
from slim_model.cost.counted import Pays, by_macs
from slim_model.cost.prices import Price, price_of, read_target
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.shrink_graph import shrink
from slim_model.cutting.silence import silence
from slim_model.data.batches import Data
from slim_model.errors import BudgetError
from slim_model.graph.graph import Graph
from slim_model.measuring.options import MeasuringOptions
from slim_model.progress import Progress, say_nothing
from slim_model.quantizing.options import QuantizingOptions

TRIALS = 8


@dataclass(frozen=True, slots=True)
class Goal:
    """How much one pass removes, and how that is shared out between layers.

    ``price`` None: the fraction ``ratio`` of each group's channels. Else no more than ``limit`` of the price, in its
    unit; or, where that is None, than ``1 - ratio`` of what the model costs. ``block``: layer widths are rounded to it.
    ``round`` of ``rounds``: where removal is repeated, a geometric share is left after each; with a ratio of 0.75 in
    two rounds, a half and then a half. ``whole_heads``: only groups whose channels are whole attention heads lose some.
    """

    ratio: float
    price: Price | None = None
    limit: float | None = None
    allocation: Allocation = allocation_of("uniform")
    block: int = 1
    scan: Path | None = None
    engine: str = "slim"
    round: int = 1
    rounds: int = 1
    whole_heads: bool = False

    @classmethod
    def of(cls, options: BudgetOptions, block: int) -> Goal:
        """The goal that the user's options name, in one round."""
        price, limit = (read_target(options.target)) if options.target else (price_of(options.of), None)
        return cls(
            ratio=options.share_removed,
            price=None if options.counts_channels else price,
            limit=limit,
            allocation=allocation_of(options.allocation),
            block=block,
            scan=options.scan,
            engine=options.engine,
        )

    def of_heads_first(self) -> Goal:
        """The goal of whole heads alone, ahead of widths: so many that as large a share of what is left of their width
        may follow."""
        return replace(self, ratio=1 - math.sqrt(1 - self.ratio), whole_heads=True)

    def in_rounds(self, count: int) -> list[Goal]:
        """The same goal in ``count`` rounds. A share of a price is that of what the round before left."""
        ratio = self.ratio if self.price is None or count == 1 else 1 - (1 - self.ratio) ** (1 / count)
        return [replace(self, ratio=ratio, round=number, rounds=count) for number in range(1, count + 1)]

    def limit_of(self, dense: float) -> float:
        """The limit of the price, where the model costs ``dense``."""
        return (1 - self.ratio) * dense if self.limit is None else self.limit


@dataclass(frozen=True, slots=True)
class Met:
    """What was limited, in the unit of its price: the limit, the dense model, the small one. ``trials``: where latency
    was limited, (predicted, measured) ms of each plan that was tried, the last one taken."""

    of: str
    allocate: str
    limit: float
    dense: float
    reached: float
    trials: tuple[tuple[float, float], ...] = ()


Settle = Callable[..., tuple[Coupling, np.ndarray, Sequence[int]]]
"""``factoring.ranks.settle`` for one model."""


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine chooses with. ``scores``: for each group one number a channel, higher = keep. ``dense``: the model
    before any pass, which shares of channels are counted in."""

    model: nn.Module
    dense: Graph
    coupling: Coupling
    scores: list[Tensor]
    goal: Goal
    heads: tuple[bool, ...] = ()
    """Whether each group's channels are whole attention heads."""
    data: Data | None = None
    measuring: MeasuringOptions = MeasuringOptions()
    quantizing: QuantizingOptions = QuantizingOptions()
    level: str = "affine"
    """Of the recovery that follows, by which an allocation that tries plans judges them."""
    progress: Progress = say_nothing
    start: Graph | None = None
    """Where layers of ``coupling`` are factored: the same model with none."""
    settle: Settle | None = None
    """And what multiplies those back that do not pay."""

    @property
    def whole(self) -> Graph:
        """The model of which channels go, as it is written."""
        return self.start or self.coupling.graph

    def small(self, plan: Plan, pays: Pays = by_macs) -> Graph:
        """What is written for ``plan``; ``pays``: the rule by which layers stay factored."""
        coupling, keep = self.coupling, plan.keep
        silent: Sequence[int] = plan.silent
        if self.settle is not None:
            coupling, keep, silent = self.settle(coupling, keep, silent=silent, pays=pays)
        return silence(shrink(coupling, keep)[0], coupling, silent)

    @property
    def as_int8(self) -> bool:
        """Whether the limit is that of the int8 file: it was named in its unit. A share is one of fp32."""
        return self.quantizing.int8 and self.goal.limit is not None


Check = Callable[[Graph, Sequence[tuple[Any, ...]]], None]


@dataclass(frozen=True, slots=True)
class ChosenPlan:
    """``check(small, batches)`` raises ProofError where what the engine made is not what was proven. ``met``: the limit
    that was met, where the goal was no ratio of channels. ``scan``: the sensitivity scan that the plan was chosen by.
    ``pays``: the rule by which layers stay factored.
    """

    plan: Plan
    check: Check = lambda small, batches: None
    met: Met | None = None
    scan: Scan | None = None
    pays: Pays = by_macs


Search = Callable[[Callable[[np.ndarray], float], float], Plan]
"""(what a plan costs, the limit) -> a plan that is within it."""


def too_coarse(price: Price, limit: float, reached: float) -> BudgetError:
    """The error for layers so narrow that no plan is close below the limit."""
    return BudgetError(
        f"{price.name} cannot come close to {price.say(limit)}: these layers have so few channels that "
        f"{price.say(reached)} is the nearest below. Ask for that."
    )
