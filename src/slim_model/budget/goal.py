"""What is limited and by how much, and what was reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slim_model.budget.plan import Plan
from slim_model.cost.prices import Price
from slim_model.errors import BudgetError

TRIALS = 8


@dataclass(frozen=True, slots=True)
class Allocation:
    """How the widths are chosen. ``scan`` is the file of a sensitivity scan."""

    name: str
    multiple_of: int
    scan: Path | None = None

    @property
    def kind(self) -> str:
        """The name without its options."""
        return self.name.partition(":")[0]


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


Search = Callable[[Callable[[np.ndarray], float], float], Plan]


def too_coarse(price: Price, limit: float, reached: float) -> BudgetError:
    return BudgetError(
        f"{price.name} cannot come close to {price.say(limit)}: these layers have so few channels that "
        f"{price.say(reached)} is the nearest below. Ask for that."
    )


@dataclass(frozen=True, slots=True)
class Goal:
    """No more than ``limit`` of a price, in its unit; or, where None, than ``1 - ratio`` of what the dense model
    costs."""

    price: Price
    ratio: float
    limit: float | None = None

    def of(self, dense: float) -> float:
        return (1 - self.ratio) * dense if self.limit is None else self.limit
