"""allocate: a limit on what a user pays for -> the channels to keep.

Which layers give how much is the allocation's choice (``allocations``). What it chooses is then topped up: channels
come back, those of most worth for their price first, as long as the limit holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from slim_model.allocations import Counts, Curve, Problem, allocation_of, lowered, sums_of, worth
from slim_model.budget import Plan, best_first, check_any, keep_best, plan_of, refilled, rungs_of
from slim_model.couple import Coupling
from slim_model.errors import BudgetError
from slim_model.prices import Price


def meet(
    coupling: Coupling,
    scores: list[Tensor],
    price: Price,
    of: Callable[[np.ndarray], float],
    limit: float,
    *,
    allocate: str = "greedy",
    multiple_of: int = 1,
    curves: Sequence[Curve] = (),
) -> Plan:
    """The plan of ``allocate`` that costs no more than ``limit``, and as little less as can be.

    Raises BudgetError with the least that can be reached.
    """
    check_any(coupling)
    orders = best_first(coupling, scores)
    sorted_scores = [np.sort(score.numpy())[::-1] for score in scores]
    rungs = [rungs_of(group, multiple_of) for group in coupling.groups]
    problem = Problem(coupling, of, limit, orders, sorted_scores, rungs, list(curves))
    full = problem.price(problem.full)
    least = refilled(coupling, keep_best(coupling, orders, [1] * len(orders)), scores)
    if of(least) > limit:
        raise BudgetError(
            f"{price.name} cannot come down to {price.say(limit)}: with one channel left in every layer that may lose "
            f"some, it is {price.say(of(least))} of {price.say(full)}."
        )
    if full <= limit:
        raise BudgetError(f"{price.name} is {price.say(full)} as it is, no more than the {price.say(limit)} allowed.")
    while True:
        counts = allocation_of(allocate)(problem)
        counts = lowered(problem, counts, sums_of(worth(problem, "mean")), 0.0)  # where its own steps end above
        counts = _topped_up(problem, counts, price.close)
        keep = refilled(coupling, keep_best(coupling, orders, counts), scores)
        if of(keep) <= limit:
            return plan_of(coupling, keep)
        problem = replace(problem, limit=problem.limit - (of(keep) - limit))  # for channels that no axis can lack


def _topped_up(problem: Problem, counts: Counts, close: float) -> Counts:
    """``counts`` with whatever still fits: whole rungs, and only where the limit is farther than ``close`` also single
    channels, which suit the machine less."""
    values = sums_of(worth(problem, "mean"))
    singles = [list(range(1, len(order) + 1)) for order in problem.orders]
    for rungs in (problem.rungs, singles):
        if rungs is problem.rungs or problem.price(counts) < problem.limit * (1 - close):
            counts = _raised(problem, counts, rungs, values)
    return counts


def _raised(problem: Problem, counts: Counts, rungs: list[list[int]], values: list[np.ndarray]) -> Counts:
    counts, now = list(counts), problem.price(counts)
    while True:
        offers = []
        for group, own in enumerate(rungs):
            above = next((rung for rung in own if rung > counts[group]), None)
            more = problem.with_one(counts, group, above) - now if above else np.inf
            if above and now + more <= problem.limit:
                gained = float(values[group][counts[group]] - values[group][above])
                offers.append((gained / max(more, 1e-12 * now), group, above))
        if not offers:
            return counts
        for _, group, above in sorted(offers, reverse=True):
            after = problem.with_one(counts, group, above)
            if after <= problem.limit:
                counts[group], now = above, after
