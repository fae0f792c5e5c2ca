"""A limit on what a user pays for -> the channels to keep.

Which layers give how much is the allocation's choice (``budget.methods``). What it chooses is then topped up: channels
come back, those of most worth for their price first, as long as the limit holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from slim_model.budget.allocations import Allocation, allocation_of
from slim_model.budget.methods import (
    Counts,
    Curve,
    Problem,
    comparable_scores,
    lower_group_by_group,
    sums_of,
    with_count,
)
from slim_model.budget.plan import (
    Plan,
    block_of,
    check_any,
    keep_best,
    least_of,
    plan_of,
    ranks_of,
    refill_empty_axes,
    rungs_of,
)
from slim_model.cost.break_even import ranks_among
from slim_model.cost.counted import Pays, by_macs
from slim_model.cost.prices import Price
from slim_model.coupling.coupling import Coupling
from slim_model.errors import BudgetError

CLOSE = 0.02
"""A plan that is farther below its limit than this share takes single channels back."""


def plan_under_limit(
    coupling: Coupling,
    scores: list[Tensor],
    price: Price,
    of: Callable[[np.ndarray], float],
    limit: float,
    *,
    allocation: Allocation = allocation_of("greedy"),
    multiple_of: int = 1,
    curves: Sequence[Curve] = (),
    losses: Sequence[Tensor] = (),
    latency: Callable[[np.ndarray], float] | None = None,
    pays: Pays = by_macs,
) -> Plan:
    """The plan of ``allocation`` that costs no more than ``limit``, and as little less as can be.

    ``losses``: for each group what is lost with each channel, in one unit for all groups, where ``scores`` only say
    which go first. ``latency``: ms of a plan, for an allocation that looks at it. Raises BudgetError with the least
    that can be reached. ``pays``: the rule by which layers stay factored.
    """
    check_any(coupling)
    ranks = ranks_of(scores)
    orders = [group.channels[rank] for group, rank in zip(coupling.groups, ranks, strict=True)]
    worths = [each.numpy()[rank] for each, rank in zip(losses or scores, ranks, strict=True)]
    rungs = [rungs_of(group, multiple_of) for group in coupling.groups]
    unit = "none" if losses else "mean"
    factored = ranks_among(coupling, pays)
    if factored:  # there is nothing between a break-even and all ranks, with which a layer is whole again
        rungs = [factored.possible(number, own) for number, own in enumerate(rungs)]
    blocks = [block_of(group, multiple_of) for group in coupling.groups]
    problem = Problem(coupling, of, limit, orders, worths, rungs, blocks, list(curves), unit, latency, factored)
    if factored:
        factored.choose_first(sums_of(comparable_scores(problem, unit)), rungs)
    full = problem.price(problem.full)
    smallest = least_of(coupling, scores, of, multiple_of)
    least = of(smallest)
    if least > limit:
        raise BudgetError(
            f"{price.name} cannot come down to {price.say(limit)}: with every layer that may lose some as narrow as "
            f"can be, it is {price.say(least)} of {price.say(full)}."
        )
    if full <= limit:
        raise BudgetError(f"{price.name} is {price.say(full)} as it is, no more than the {price.say(limit)} allowed.")
    while True:
        counts = allocation.method(problem)
        values = sums_of(comparable_scores(problem, problem.normalise))
        counts = lower_group_by_group(problem, counts, values)  # where its own steps end above
        counts = _topped_up(problem, counts, values)
        keep = refill_empty_axes(coupling, keep_best(coupling, orders, counts), scores)
        if of(keep) <= limit:
            break
        if problem.limit < least:  # what is narrower may take longer: only the smallest is known to meet the limit
            keep = smallest
            break
        problem = replace(problem, limit=problem.limit - (of(keep) - limit))  # for channels that no axis can lack
    return plan_of(coupling, keep)


def _topped_up(problem: Problem, counts: Counts, values: list[np.ndarray]) -> Counts:
    """``counts`` with whatever still fits: whole rungs, and only where the limit is farther than CLOSE also single
    channels, which suit the machine less, and exchanges of some for others."""
    singles = [list(range(1, len(order) + 1)) for order in problem.orders]
    if problem.ranks:
        singles = [problem.ranks.possible(number, own) for number, own in enumerate(singles)]
    counts = _raised(problem, counts, problem.rungs, values)
    if problem.price(counts) < problem.limit * (1 - CLOSE):
        counts = _raised(problem, counts, singles, values)
    while (now := problem.price(counts)) < problem.limit * (1 - CLOSE):
        swaps = [swap for group in range(len(counts)) for swap in _exchanges(problem, counts, group)]
        better = max(swaps, key=problem.price, default=counts)
        if problem.price(better) <= now:
            break
        counts = better
    return counts


def _exchanges(problem: Problem, counts: Counts, group: int) -> Iterator[Counts]:
    """One channel more of ``group``, for as few of another as hold the limit."""
    if counts[group] == len(problem.orders[group]):
        return
    raised = with_count(counts, group, counts[group] + 1)
    for other in range(len(counts)):
        if other == group or problem.with_one(raised, other, 1) > problem.limit:
            continue
        low, high = 1, counts[other]
        while high - low > 1:  # at low the limit holds, at high it does not
            middle = (low + high) // 2
            if problem.with_one(raised, other, middle) <= problem.limit:
                low = middle
            else:
                high = middle
        yield with_count(raised, other, low)


def _raised(problem: Problem, counts: Counts, rungs: list[list[int]], values: list[np.ndarray]) -> Counts:
    counts, now = list(counts), problem.price(counts)
    while True:
        offers = []
        for group, own in enumerate(rungs):
            above = next((rung for rung in own if rung > counts[group]), None)
            more = problem.with_one(counts, group, above) - now if above else np.inf
            if above and now + more <= problem.limit:
                gained = float(values[group][counts[group]] - values[group][above])
                offers.append((gained / max(more, 1e-300), group, above))
        if not offers:
            return counts
        for _, group, above in sorted(offers, reverse=True):
            after = problem.with_one(counts, group, above)
            if after <= problem.limit:
                counts[group], now = above, after
