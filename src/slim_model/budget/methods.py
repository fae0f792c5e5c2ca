"""Which layers give how much, so that a limit is met. One function each; their table is
``allocations``."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from slim_model.budget.knapsack import solve_knapsack
from slim_model.budget.plan import FLOOR, count_lowest, keep_best
from slim_model.cost.break_even import Ranks
from slim_model.cost.counted import CostModel
from slim_model.coupling.coupling import Coupling, Group

Counts = list[int]
"""How many channels each group keeps."""
Curve = tuple[np.ndarray, np.ndarray]
"""Of one group: shares of its channels removed, rising from 0, and what the model loses at each."""
MOST_RUNGS = 48
"""Of a group, tried in turn; of many narrow ones, some at once."""
_HALVINGS = 24
ROUNDS = 5
"""In which a knapsack's limit comes down."""


@dataclass(frozen=True, slots=True)
class Problem:
    """``of(keep)`` must come down to ``limit``. ``orders``: the channels of each group, best first; ``scores`` in that
    order, and ``normalise`` how these compare between groups; ``rungs``: the widths that suit the machine, ``blocks``:
    the least of each group's that fills a block. ``curves``: what a sensitivity scan measured, by group. ``latency``:
    ms of what is kept, as measured layers add up to. ``ranks``: which groups are ranks of factored layers."""

    coupling: Coupling
    of: Callable[[np.ndarray], float]
    limit: float
    orders: list[np.ndarray]
    scores: list[np.ndarray]
    rungs: list[list[int]]
    blocks: list[int]
    curves: list[Curve] = field(default_factory=list)
    normalise: str = "mean"
    latency: Callable[[np.ndarray], float] | None = None
    ranks: Ranks | None = None

    @property
    def full(self) -> Counts:
        return [len(order) for order in self.orders]

    def price(self, counts: Counts) -> float:
        return self.of(self.keep(counts))

    def keep(self, counts: Counts) -> np.ndarray:
        return keep_best(self.coupling, self.orders, counts)

    def with_one(self, counts: Counts, group: int, count: int) -> float:
        return self.price(with_count(counts, group, count))


def with_count(counts: Counts, group: int, count: int) -> Counts:
    return [*counts[:group], count, *counts[group + 1 :]]


# -- how channels of different groups compare -----------------------------------------------------------------------


def comparable_scores(problem: Problem, normalise: str) -> list[np.ndarray]:
    """Scores that compare between groups, best first. ``mean``: in units of the group's mean size; ``lamp``: each over
    the sum of its own and all better ones (Lee et al., ICLR 2021); ``none``: as they are."""
    if normalise == "none":
        return problem.scores
    if normalise == "lamp":
        lowest_score = [min(0.0, float(score[-1])) for score in problem.scores]
        above = [score - low for score, low in zip(problem.scores, lowest_score, strict=True)]
        return [score / np.maximum(np.cumsum(score), 1e-300) for score in above]
    return [score / max(float(np.abs(score).mean()), 1e-300) for score in problem.scores]


def sums_of(values: list[np.ndarray]) -> list[np.ndarray]:
    """What is lost when the last ones go: ``sums[g][k]`` if k are kept."""
    return [np.append(np.cumsum(value[::-1])[::-1], 0.0) for value in values]


# -- which layers give how much -------------------------------------------------------------------------------------


def uniform(problem: Problem) -> Counts:
    """The same ratio in every layer. A rank is left that share of the rank at which, with the widths that are left, its
    layer costs what the one layer does."""
    return _least_that_meets(problem, lambda ratio: _shares(problem, 1 - ratio))


def _shares(problem: Problem, share: float) -> list[float]:
    counts = [share * full for full in problem.full]
    return problem.ranks.in_share(counts, share, problem.keep) if problem.ranks else counts


def one_ranking(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """One ranking of all channels; each group keeps a share of at least ``floor``."""
    return _ranked(problem, comparable_scores(problem, normalise), floor, [0] * len(problem.orders))


def isomorphic(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """One ranking in each class of groups that are built alike, and the same ratio in every class (Fang et al.,
    Isomorphic Pruning, ECCV 2024)."""
    kinds: dict[Any, int] = {}
    return _ranked(
        problem,
        comparable_scores(problem, normalise),
        floor,
        [kinds.setdefault(_built(group), len(kinds)) for group in problem.coupling.groups],
    )


def _built(group: Group) -> frozenset[tuple[tuple[str, int, str], int]]:
    """How many tensors of each kind hold its channels, and where."""
    return frozenset(Counter((s.role, s.axis, s.parameter.rpartition(".")[2]) for s in group.slices).items())


def _ranked(problem: Problem, values: list[np.ndarray], floor: float, classes: list[int]) -> Counts:
    def at(ratio: float) -> list[float]:
        targets = [0.0] * len(values)
        for kind in set(classes):
            own = [i for i, c in enumerate(classes) if c == kind]
            gone = count_lowest([values[i] for i in own], int(ratio * sum(len(values[i]) for i in own)))
            for i, count in zip(own, gone, strict=True):
                targets[i] = max(floor * len(values[i]), len(values[i]) - count)
        return targets

    return _least_that_meets(problem, at)


def greedy(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """Block after block, the one of least worth for the price it saves.

    What a block saves depends on its neighbours, so prices are counted anew: of the block that seemed best, until one
    is still the best when counted (lazy evaluation, Minoux 1978). ``floor`` gives way where the limit needs it.
    """
    return _lowered(problem, sums_of(comparable_scores(problem, normalise)), _floors(problem, floor))


def product(problem: Problem, *, floor: float = FLOOR) -> Counts:
    """Block after block, so that the product over all groups of the share that each keeps stays as large as can be
    (Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016: so they choose ranks).

    What a rank keeps is its layer's spread; what a width keeps is its share of its group's worth."""
    ranks = problem.ranks.axis_of if problem.ranks else {}
    values = [_lost_of_product(own, spread=group in ranks) for group, own in enumerate(problem.scores)]
    return _lowered(problem, values, _floors(problem, floor))


def _lost_of_product(scores: np.ndarray, *, spread: bool) -> np.ndarray:
    """``-log`` of the share that is left when k are kept, by k. ``spread``: a score is what is lost with its position
    and all that come after it."""
    above = np.maximum(scores, 0)
    tail = above if spread else np.cumsum(above[::-1])[::-1] / max(float(above.sum()), 1e-300)
    lost: np.ndarray = -np.log1p(-np.minimum(np.append(tail, 0.0), 1 - 1e-9))
    return lost


def latency(problem: Problem, *, normalise: str = "lamp", floor: float = 0.05) -> Counts:
    """Block after block, the one that saves most measured latency for what it gives up: its share of the price that
    is limited and its share of all worth. Under a limit on multiply-adds these are then spent where they are fast.
    What is narrower than a block comes last: by itself, as it was measured, it is faster than among layers that fill
    theirs."""
    values, full = sums_of(comparable_scores(problem, normalise)), problem.full

    @lru_cache(maxsize=2)  # what is there now, and what is tried
    def ms(counts: tuple[int, ...]) -> float:
        assert problem.latency is not None
        return problem.latency(problem.keep(list(counts)))

    whole, dense, price = sum(float(v[0]) for v in values), ms(tuple(full)), problem.price(full)

    def rate(counts: Counts, after: Counts, lost: float, saved: float) -> float:
        sooner = ms(tuple(counts)) - ms(tuple(after))
        return (saved / price + lost / max(whole, 1e-300)) / max(sooner / dense, 1e-12)

    least = [max(floors) for floors in zip(_floors(problem, floor), problem.blocks, strict=True)]
    return _lowered(problem, values, least, rate)


Rate = Callable[[Counts, Counts, float, float], float]
"""``(counts, counts without a block, worth lost, price saved)``; the block of the least goes first."""


def _per_price(counts: Counts, after: Counts, lost: float, saved: float) -> float:
    return lost / max(saved, 1e-300)


def _lowered(problem: Problem, values: list[np.ndarray], least: Sequence[float], rate_of: Rate = _per_price) -> Counts:
    """All groups as far as ``least``, and farther where the limit needs it."""
    counts = lower_group_by_group(problem, problem.full, values, least, rate_of)
    return lower_group_by_group(problem, counts, values, rate_of=rate_of)


def _floors(problem: Problem, share: float) -> list[float]:
    most = problem.ranks.break_even if problem.ranks else {}
    return [share * most.get(group, full) for group, full in enumerate(problem.full)]


def lower_group_by_group(
    problem: Problem,
    counts: Counts,
    values: list[np.ndarray],
    least: Sequence[float] | None = None,
    rate_of: Rate = _per_price,
) -> Counts:
    """``least``: what each group keeps; default: a channel."""
    counts, now = list(counts), problem.price(counts)
    queue = [(-np.inf, group) for group in range(len(counts))]
    while queue and now > problem.limit:
        _, group = heapq.heappop(queue)
        below = _below(problem, group, counts[group], least[group] if least else 1)
        if below is None:
            continue
        after = with_count(counts, group, below)
        saved = now - problem.price(after)
        # The price of a group depends on its neighbours' widths, so that a rate in the queue may be out of date.
        rate = rate_of(counts, after, float(values[group][below] - values[group][counts[group]]), saved)
        # Another group is better now: this one waits with its new rate (lazy evaluation of a greedy choice).
        if queue and rate > queue[0][0]:
            heapq.heappush(queue, (rate, group))
            continue
        counts, now = after, now - saved
        heapq.heappush(queue, (rate, group))
    return counts


def damage(problem: Problem, *, floor: float = 0.05) -> Counts:
    """Block after block, the one with which the outputs lose least for the price it saves. What they lose is measured:
    a part of every group alone is removed and made up for (``budget.output_damage``)."""
    return greedy(problem, normalise="none", floor=floor)


def _below(problem: Problem, group: int, count: int, least: float) -> int | None:
    """The next rung down, where it is no less than ``least``. The first step of a rank goes to where it gives up least
    for what it saves: its layer saves nothing before its break-even."""
    rungs = problem.rungs[group]
    if problem.ranks and group in problem.ranks.first and count == len(problem.orders[group]):
        first = problem.ranks.first[group]
        return first if first >= least else None
    step = max(1, len(rungs) // MOST_RUNGS)
    lower = [rung for rung in rungs if rung < count][-step:]
    return lower[0] if lower and lower[0] >= least else None


def energy(problem: Problem, *, guard: float = 0.5) -> Counts:
    """The groups whose layers draw most first, each until it has lost the share ``guard`` of its worth, as long as the
    limit is not met; where that is too little, the least guard that is not (after Yang, Chen, Sze, CVPR 2017)."""
    meter = CostModel(problem.coupling)

    def drawn(group: int) -> float:
        counts = problem.full
        counts[group] = 1
        return meter.energy(keep_best(problem.coupling, problem.orders, counts))

    order = sorted(range(len(problem.orders)), key=drawn)
    return _guarded(problem, [_own_curve(score) for score in problem.scores], order, guard)


def _own_curve(score: np.ndarray) -> Curve:
    """The share of the group's worth that goes with its lowest channels."""
    above = score - min(0.0, float(score[-1]))
    lost = np.append(0.0, np.cumsum(above[::-1]))
    return np.linspace(0, 1, len(lost)), lost / max(float(lost[-1]), 1e-300)


def sensitivity(problem: Problem, *, measure: str = "error") -> Counts:
    """Each group down to where the model loses e, as a scan of every group alone measured it; the least e that meets
    the limit (Li et al., ICLR 2017). ``measure``: what the scan reads, ``error`` of the outputs or ``accuracy``."""
    return _guarded(problem, problem.curves)


def _guarded(problem: Problem, curves: Sequence[Curve], order: Sequence[int] = (), guard: float = 0.0) -> Counts:
    """``order``: one group after another goes down, until the limit is met; without it all do."""
    # Measured curves waver; what is lost never falls with more removed.
    rising = [(shares, np.maximum.accumulate(lost)) for shares, lost in curves]

    def allowed(group: int, most: float) -> int:
        shares, lost = rising[group]
        counts = np.arange(1, len(problem.orders[group]) + 1)
        fits = np.interp(1 - counts / counts[-1], shares, lost) <= most
        return int(counts[fits][0]) if fits.any() else int(counts[-1])

    def at(most: float) -> list[float]:
        if not order:
            return [float(allowed(group, most)) for group in range(len(rising))]
        counts = problem.full
        for group in order:
            counts[group] = allowed(group, most)
            if problem.price(counts) <= problem.limit:
                break
        return [float(count) for count in counts]

    if guard and problem.price([int(count) for count in at(guard)]) <= problem.limit:
        return _rounded(problem, at(guard))
    worst = max(float(lost[-1]) for _, lost in rising)
    # The cube spreads the steps of the bisection over losses of several orders of magnitude.
    return _least_that_meets(problem, lambda part: at(part**3 * worst))


def knapsack(problem: Problem, *, normalise: str = "mean", floor: float = FLOOR) -> Counts:
    """The most worth that the limit can hold: a width is chosen for every group at once by dynamic programming, the
    neighbours' widths held, in rounds that bring the limit down (Shen et al., HALP, NeurIPS 2022).

    A group's price at each width is what the whole model costs with that width: latency where latency is limited.
    """
    values, counts = sums_of(comparable_scores(problem, normalise)), problem.full
    full = problem.price(counts)
    for number in range(1, ROUNDS + 1):
        limit = full * (problem.limit / full) ** (number / ROUNDS)
        options = [_options(problem, g, counts[g], floor) for g in range(len(counts))]
        now = problem.price(counts)
        saved = [np.array([now - problem.with_one(counts, g, k) for k in ks]) for g, ks in enumerate(options)]
        lost = [values[g][ks] - values[g][counts[g]] for g, ks in enumerate(options)]
        counts = _chosen(problem, options, saved, lost, now, limit)
    return counts


def _options(problem: Problem, group: int, count: int, floor: float) -> list[int]:
    rungs = [r for r in problem.rungs[group] if r <= count and (r >= floor * problem.rungs[group][-1] or r == count)]
    thin = max(1, len(rungs) // MOST_RUNGS)
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
        counts = [o[i] for o, i in zip(options, solve_knapsack(saved, lost, min(needed, most)), strict=True)]
        reached = now - problem.price(counts)
        if reached >= now - limit or needed >= most:
            break
        needed *= max(1.02, (now - limit) / max(reached, 1e-300))
    return counts


def _least_that_meets(problem: Problem, at: Callable[[float], list[float]]) -> Counts:
    """The widths ``at`` the smallest part of 0..1 that meets the limit, to 1/2^24, rounded to rungs."""
    low, high, best = 0.0, 1.0, [1.0] * len(problem.orders)
    for _ in range(_HALVINGS):
        part = (low + high) / 2
        targets = at(part)
        if problem.price([max(1, round(target)) for target in targets]) <= problem.limit:
            best, high = targets, part
        else:
            low = part
    return _rounded(problem, best)


def _rounded(problem: Problem, targets: list[float]) -> Counts:
    """Down to rungs, then up where the target is nearest to the rung above, those of more worth first, while the limit
    holds."""
    pairs = list(zip(problem.rungs, targets, strict=True))
    counts = [max((r for r in rungs if r <= target), default=rungs[0]) for rungs, target in pairs]
    above = [min((r for r in rungs if r >= target), default=rungs[-1]) for rungs, target in pairs]
    values = sums_of(comparable_scores(problem, problem.normalise))

    def urgency(group: int) -> tuple[float, float]:
        gap, step = targets[group] - counts[group], above[group] - counts[group]
        return round(gap / max(step, 1), 2), float(values[group][counts[group]] - values[group][above[group]])

    for group in sorted(range(len(counts)), key=urgency, reverse=True):
        if problem.with_one(counts, group, above[group]) <= problem.limit:
            counts[group] = above[group]
    return counts
