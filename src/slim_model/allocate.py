"""allocate: a limit on what a user pays for -> how many channels each group keeps.

Which layers give how much is the allocation's choice, one row each in ``ALLOCATIONS``. What it chooses is then topped
up: channels come back, those of most worth for their price first, as long as the limit holds.
"""

from __future__ import annotations

import heapq
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from slim_model.budget import (
    FLOOR,
    Plan,
    best_first,
    check_any,
    keep_best,
    lowest,
    nearest,
    plan_of,
    refilled,
    rungs_of,
)
from slim_model.couple import Coupling, Group
from slim_model.errors import BudgetError, InputError
from slim_model.prices import Price

Counts = list[int]
"""How many channels each group keeps."""
Curve = tuple[np.ndarray, np.ndarray]
"""Of one group: shares of its channels removed, rising from 0, and what the model loses at each."""
_HALVINGS = 24
_BINS = 400
_ROUNDS = 5
_RUNGS = 48


@dataclass(frozen=True, slots=True)
class Problem:
    """``of(keep)`` must come down to ``limit``. ``orders``: the channels of each group, best first; ``scores`` in that
    order; ``rungs``: the widths that suit the machine. ``curves``: what a sensitivity scan measured, by group."""

    coupling: Coupling
    of: Callable[[np.ndarray], float]
    limit: float
    orders: list[np.ndarray]
    scores: list[np.ndarray]
    rungs: list[list[int]]
    curves: list[Curve] = field(default_factory=list)

    @property
    def full(self) -> Counts:
        return [len(order) for order in self.orders]

    def price(self, counts: Counts) -> float:
        return self.of(keep_best(self.coupling, self.orders, counts))

    def with_one(self, counts: Counts, group: int, count: int) -> float:
        return self.price([*counts[:group], count, *counts[group + 1 :]])


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
        counts = _lowered(problem, counts, _sums(worth(problem, "mean")), 0.0)  # where its own steps end above
        counts = _topped_up(problem, counts, price.close)
        keep = refilled(coupling, keep_best(coupling, orders, counts), scores)
        if of(keep) <= limit:
            return plan_of(coupling, keep)
        problem = replace(problem, limit=problem.limit - (of(keep) - limit))  # for channels that no axis can lack


# -- how channels of different groups compare -----------------------------------------------------------------------


def worth(problem: Problem, normalise: str) -> list[np.ndarray]:
    """Scores that compare between groups, best first. ``mean``: in units of the group's mean size; ``lamp``: each over
    the sum of its own and all better ones (Lee et al., ICLR 2021); ``none``: as they are."""
    if normalise == "none":
        return problem.scores
    if normalise == "lamp":
        lowest_score = [min(0.0, float(score[-1])) for score in problem.scores]
        above = [score - low for score, low in zip(problem.scores, lowest_score, strict=True)]
        return [score / np.maximum(np.cumsum(score), 1e-300) for score in above]
    return [score / max(float(np.abs(score).mean()), 1e-300) for score in problem.scores]


def _sums(values: list[np.ndarray]) -> list[np.ndarray]:
    """What is lost when the last ones go: ``sums[g][k]`` if k are kept."""
    return [np.append(np.cumsum(value[::-1])[::-1], 0.0) for value in values]


# -- which layers give how much -------------------------------------------------------------------------------------


def uniform(problem: Problem) -> Counts:
    """The same ratio in every layer."""
    return _least_that_meets(
        problem, lambda ratio: [nearest(r, (1 - ratio) * r[-1]) for r in problem.rungs], lowest_of(problem)
    )


def one_ranking(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """One ranking of all channels; each group keeps a share of at least ``floor``."""
    return _ranked(problem, worth(problem, normalise), floor, [0] * len(problem.orders))


def isomorphic(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """One ranking in each class of groups that are built alike, and the same ratio in every class (Fang et al.,
    Isomorphic Pruning, ECCV 2024)."""
    kinds: dict[Any, int] = {}
    return _ranked(
        problem,
        worth(problem, normalise),
        floor,
        [kinds.setdefault(_built(group), len(kinds)) for group in problem.coupling.groups],
    )


def _built(group: Group) -> frozenset[tuple[tuple[str, int, str], int]]:
    """How many tensors of each kind hold its channels, and where."""
    return frozenset(Counter((s.role, s.axis, s.parameter.rpartition(".")[2]) for s in group.slices).items())


def _ranked(problem: Problem, values: list[np.ndarray], floor: float, classes: list[int]) -> Counts:
    def at(ratio: float) -> Counts:
        counts = problem.full
        for kind in set(classes):
            own = [i for i, c in enumerate(classes) if c == kind]
            gone = lowest([values[i] for i in own], int(ratio * sum(len(values[i]) for i in own)))
            for i, count in zip(own, gone, strict=True):
                counts[i] = nearest(problem.rungs[i], max(1, floor * len(values[i]), len(values[i]) - count))
        return counts

    return _least_that_meets(problem, at, lowest_of(problem))


def greedy(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """Block after block, the one of least worth for the price it saves.

    What a block saves depends on its neighbours, so prices are counted anew: of the block that seemed best, until one
    is still the best when counted (lazy evaluation, Minoux 1978). ``floor`` gives way where the limit needs it.
    """
    values = _sums(worth(problem, normalise))
    return _lowered(problem, _lowered(problem, problem.full, values, floor), values, 0.0)


def _lowered(problem: Problem, counts: Counts, values: list[np.ndarray], floor: float) -> Counts:
    counts, now = list(counts), problem.price(counts)
    queue = [(-np.inf, group) for group in range(len(counts))]
    while queue and now > problem.limit:
        _, group = heapq.heappop(queue)
        below = _below(problem, group, counts[group], floor)
        if below is None:
            continue
        saved = now - problem.with_one(counts, group, below)
        lost = float(values[group][below] - values[group][counts[group]])
        rate = lost / max(saved, 1e-12 * now)
        if queue and rate > queue[0][0]:
            heapq.heappush(queue, (rate, group))
            continue
        counts[group], now = below, now - saved
        heapq.heappush(queue, (rate, group))
    return counts


def _below(problem: Problem, group: int, count: int, floor: float) -> int | None:
    """The next rung down; of many narrow ones, some at once."""
    rungs = problem.rungs[group]
    step = max(1, len(rungs) // _RUNGS)
    found = [rung for rung in rungs if rung < count][-step:]
    return found[0] if found and found[0] >= max(1, floor * rungs[-1]) else None


def energy(problem: Problem) -> Counts:
    """The groups whose layers draw most first, each down to where it has lost a share e of its worth, the least e that
    meets the limit (after Yang, Chen, Sze, CVPR 2017: the order, and a guard on each layer)."""
    from slim_model.cost import Meter

    meter = Meter(problem.coupling)

    def drawn(group: int) -> float:
        counts = problem.full
        counts[group] = 1
        return meter.energy(keep_best(problem.coupling, problem.orders, counts))

    order = sorted(range(len(problem.orders)), key=drawn)
    curves = [_own_curve(score) for score in problem.scores]
    return _guarded(problem, curves, order)


def _own_curve(score: np.ndarray) -> Curve:
    """The share of the group's worth that goes with its lowest channels."""
    above = score - min(0.0, float(score[-1]))
    lost = np.append(0.0, np.cumsum(above[::-1]))
    return np.linspace(0, 1, len(lost)), lost / max(float(lost[-1]), 1e-300)


def sensitivity(problem: Problem) -> Counts:
    """Each group down to where the model loses e, as a scan of every group alone measured it; the least e that meets
    the limit (Li et al., ICLR 2017)."""
    return _guarded(problem, problem.curves, [])


def _guarded(problem: Problem, curves: Sequence[Curve], order: Sequence[int]) -> Counts:
    """``order``: one group after another goes down, until the limit is met; without it all do."""
    rising = [(shares, np.maximum.accumulate(lost)) for shares, lost in curves]

    def allowed(group: int, most: float) -> int:
        shares, lost = rising[group]
        rungs = np.array(problem.rungs[group])
        fits = np.interp(1 - rungs / rungs[-1], shares, lost) <= most
        return int(rungs[fits][0]) if fits.any() else int(rungs[-1])

    def at(most: float) -> Counts:
        if not order:
            return [allowed(group, most) for group in range(len(rising))]
        counts = problem.full
        for group in order:
            counts[group] = allowed(group, most)
            if problem.price(counts) <= problem.limit:
                break
        return counts

    worst = max(float(lost[-1]) for _, lost in rising)
    return _least_that_meets(problem, lambda part: at(part**3 * worst), lowest_of(problem))


def knapsack(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """The most worth that the limit can hold: a width is chosen for every group at once by dynamic programming, the
    neighbours' widths held, in rounds that bring the limit down (Shen et al., HALP, NeurIPS 2022).

    A group's price at each width is what the whole model costs with that width: latency where latency is limited.
    """
    values, counts = _sums(worth(problem, normalise)), problem.full
    full = problem.price(counts)
    for number in range(1, _ROUNDS + 1):
        limit = full * (problem.limit / full) ** (number / _ROUNDS)
        options = [_options(problem, g, counts[g], floor) for g in range(len(counts))]
        now = problem.price(counts)
        saved = [np.array([now - problem.with_one(counts, g, k) for k in ks]) for g, ks in enumerate(options)]
        lost = [values[g][ks] - values[g][counts[g]] for g, ks in enumerate(options)]
        counts = _chosen(problem, options, saved, lost, now, limit)
    return counts


def _options(problem: Problem, group: int, count: int, floor: float) -> list[int]:
    rungs = [r for r in problem.rungs[group] if r <= count and (r >= floor * problem.rungs[group][-1] or r == count)]
    thin = max(1, len(rungs) // _RUNGS)
    return rungs[::-1][::thin]


def _chosen(
    problem: Problem,
    options: list[list[int]],
    saved: list[np.ndarray],
    lost: list[np.ndarray],
    now: float,
    limit: float,
) -> Counts:
    """Savings of neighbours overlap, so more is asked for until enough is saved in truth."""
    needed = now - limit
    counts = [option[0] for option in options]
    for _ in range(8):
        most = sum(float(s.max()) for s in saved)
        counts = [o[i] for o, i in zip(options, _pack(saved, lost, min(needed, most)), strict=True)]
        reached = now - problem.price(counts)
        if reached >= now - limit or needed >= most:
            break
        needed *= max(1.02, (now - limit) / max(reached, 1e-12 * now))
    return counts


def _pack(saved: list[np.ndarray], lost: list[np.ndarray], needed: float) -> list[int]:
    """One option of each that together save ``needed`` and lose least: ``best[b]`` is the least that saves b bins."""
    size = max(needed, 1e-300) / _BINS
    best = np.full(_BINS + 1, np.inf)
    best[0] = 0.0
    choices = []
    bins = np.arange(_BINS + 1)
    for save, loss in zip(saved, lost, strict=True):
        steps = np.clip((save / size).astype(int), 0, _BINS)
        reached, chosen = np.full(_BINS + 1, np.inf), np.zeros(_BINS + 1, int)
        for option, (step, cost) in enumerate(zip(steps, loss, strict=True)):
            candidate = best[np.maximum(bins - step, 0)] + cost
            better = candidate < reached
            reached[better], chosen[better] = candidate[better], option
        choices.append((chosen, steps))
        best = reached
    at = int(np.flatnonzero(np.isfinite(best))[-1])
    picked = []
    for chosen, steps in reversed(choices):
        picked.append(int(chosen[at]))
        at = max(at - int(steps[chosen[at]]), 0)
    return picked[::-1]


ALLOCATIONS: dict[str, Callable[..., Counts]] = {
    "uniform": uniform,
    "global": one_ranking,
    "isomorphic": isomorphic,
    "greedy": greedy,
    "sensitivity": sensitivity,
    "energy": energy,
    "knapsack": knapsack,
}


def allocation_of(text: str) -> Callable[[Problem], Counts]:
    """The row for ``NAME`` or ``NAME:option=value,...``."""
    name, _, rest = text.partition(":")
    if name not in ALLOCATIONS:
        raise InputError(f"no allocation is called '{name}'. There are: {', '.join(ALLOCATIONS)}.")
    known = {
        p.name: p.default for p in inspect.signature(ALLOCATIONS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            options[key] = type(known[key])(value)
        except (KeyError, ValueError):
            has = f"its options are {', '.join(f'{k}={v}' for k, v in known.items())}" if known else "it has no options"
            raise InputError(f"allocation '{name}' does not take '{part}': {has}.") from None
    if options.get("normalise", "mean") not in ("mean", "lamp", "none"):
        raise InputError(f"allocation '{name}': normalise={options['normalise']} is not mean, lamp or none.")
    return partial(ALLOCATIONS[name], **options)


# -- meeting the limit ----------------------------------------------------------------------------------------------


def lowest_of(problem: Problem) -> Counts:
    return [rungs[0] for rungs in problem.rungs]


def _least_that_meets(problem: Problem, at: Callable[[float], Counts], otherwise: Counts) -> Counts:
    """``at`` the smallest part of 0..1 that meets the limit, to 1/2^24."""
    low, high, best = 0.0, 1.0, otherwise
    for _ in range(_HALVINGS):
        part = (low + high) / 2
        counts = at(part)
        if problem.price(counts) <= problem.limit:
            best, high = counts, part
        else:
            low = part
    return best


def _topped_up(problem: Problem, counts: Counts, close: float) -> Counts:
    """``counts`` with whatever still fits: whole rungs, and only where the limit is farther than ``close`` also single
    channels, which suit the machine less."""
    values = _sums(worth(problem, "mean"))
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
