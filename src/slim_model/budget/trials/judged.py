"""Several plans that meet a limit -> the one with which the outputs lose least, once it was recovered.

Scores of different layers do not add up, and what is lost when one layer is cut alone says little of what is lost when
all are. So whole plans are tried: the same ratio in every layer, residual branches gone as a whole, and half of each;
where layers are factored, of widths and ranks, of widths alone, and of ranks alone. All are recovered on some of the
samples, at the level that is to follow, and compared on those that are held out. The uniform plan is one of them: what
is taken is never worse than it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from slim_model.budget.allocations import allocation_of
from slim_model.budget.goal import Met, Task
from slim_model.budget.plan import Plan
from slim_model.budget.trials.branches import Branch, groups_of, order_of_branches
from slim_model.coupling.rank_groups import Kind, kinds_of
from slim_model.cutting.cut import CutFailed, positions_left
from slim_model.cutting.shrink_graph import shrink
from slim_model.cutting.silence import silence
from slim_model.data.accuracy import Exam
from slim_model.data.batches import Batch, Data
from slim_model.data.holdout import split_off_held_out
from slim_model.errors import BudgetError, ensure
from slim_model.graph.graph import Graph
from slim_model.recovery.recover import recover
from slim_model.recovery.referee import Referee

_SHARED_OUT: dict[Kind, str] = {"all": "uniform", "ranks": "product", "widths": "uniform"}
"""The allocation by which the groups of each kind share out what branches leave to be saved."""
SHARES = (0.0, 0.5, 1.0)
"""Of what is to be saved, by whole branches; the rest by narrower layers."""
_DEEPER = 0.85
"""Of a limit on what only a file or a run tells: branches are ordered until they alone save more than is asked for,
since a prediction may be wrong."""
_FITTED = 320
"""Samples on which the plans that are compared are recovered."""
_LEVELS = {"none": "none", "bias": "bias", "data-free": "data-free", "affine": "affine"}


@dataclass(frozen=True, slots=True)
class Leaving:
    """What a plan is told ahead of its allocation. Branches go first: those in front of ``order``, until the share
    ``share`` of what is to be saved is. Then channels go ``among`` a kind of groups alone."""

    order: tuple[Branch, ...] = ()
    share: float = 0.0
    among: Kind = "all"

    def count(self, price_at: Callable[[int], float], limit: float) -> int:
        """How many branches go. ``price_at(n)``: with n of them gone."""
        dense = price_at(0)
        wanted = dense - self.share * (dense - limit)
        count = next((n for n in range(len(self.order) + 1) if price_at(n) <= wanted), len(self.order))
        return count - 1 if self.share < 1 and count and price_at(count) <= limit else count

    def first(self, count: int) -> tuple[int, ...]:
        """The groups of so many branches."""
        return groups_of(self.order[:count])


NOTHING = Leaving()


def best_plan(
    task: Task,
    plan_with: Callable[[Task, Leaving], tuple[Plan, Met]],
    price_of: Callable[[np.ndarray], float],
) -> tuple[Plan, Met]:
    """The plan of least error. ``plan_with``: a plan that meets the goal with these branches gone, what is left to be
    saved shared out by the goal's allocation. ``price_of``: what a choice of channels costs. Raises BudgetError where
    no plan meets the goal."""
    data, graph = task.data, task.coupling.graph
    ensure(data is not None, "allocate judged", "it has no data")  # the recipe asks for it
    assert data is not None
    fit, held_out = split_off_held_out(data, graph)
    predicted = task.goal.price is not None and (task.goal.price.of is None or task.goal.price.file)
    least = (_DEEPER if predicted else 1.0) * task.goal.limit_of(price_of(task.coupling.keep_all()))
    order = tuple(order_of_branches(task.coupling, fit, held_out, price_of, least, task.progress))
    tasks = {
        kind: replace(task, goal=replace(task.goal, allocation=allocation_of(name)))
        for kind, name in _SHARED_OUT.items()
    }
    plans, judge = dict[bytes, _Tried](), _Judge(task, data, Referee(graph, held_out))
    refused = list[BudgetError]()

    def tried(leavings: Iterable[Leaving]) -> list[_Tried]:
        for leaving in leavings:
            try:
                plan, met = plan_with(tasks[leaving.among], leaving)
            except BudgetError as error:
                refused.append(error)
            else:  # a limit that branches alone meet, all kinds meet alike
                met = replace(met, allocate=_said(leaving, plan))
                plans.setdefault(plan.keep.tobytes(), _Tried(leaving, plan, met))
        return list(plans.values())

    # the kind first, without branches, and then how many of these: each plan is recovered, which takes its time
    kinds = kinds_of(task.coupling)
    first = tried(Leaving(order, SHARES[0], kind) for kind in kinds)
    chosen = [judge.best(first).leaving.among] if first else kinds
    every = tried(Leaving(order, share, kind) for kind in chosen for share in SHARES[1:] if order)
    if not every:
        raise refused[0]
    best = judge.best(every)
    return best.plan, best.met


@dataclass(slots=True)
class _Tried:
    """A plan that meets the goal, and its error once it was asked for."""

    leaving: Leaving
    plan: Plan
    met: Met
    error: float | None = None


def _said(leaving: Leaving, plan: Plan) -> str:
    of = "" if leaving.among == "all" else f" of {leaving.among}"
    count = sum(branch.read in plan.silent for branch in leaving.order)
    return f"judged: {_SHARED_OUT[leaving.among]}{of}" + (f", {count} branch{'es' * (count > 1)} gone" if count else "")


@dataclass(frozen=True, slots=True)
class _Judge:
    task: Task
    data: Data
    referee: Referee

    def best(self, tried: Sequence[_Tried]) -> _Tried:
        """The one of least error; a single one is not judged."""
        if len(tried) > 1:
            for each in tried:
                each.error = self._error(each.plan, each.met) if each.error is None else each.error
        return min(tried, key=lambda each: each.error or 0.0)

    def _error(self, plan: Plan, met: Met) -> float:
        """Of the outputs on what is held out, after recovery; infinite where the plan cannot be cut."""
        task, coupling = self.task, self.task.coupling
        task.progress(f"judging a plan: {met.allocate.removeprefix('judged: ')}")
        try:
            small = silence(shrink(coupling, plan.keep)[0], coupling, plan.silent)
        except CutFailed:
            return float("inf")
        return self.referee.error(self._recovered(small, plan))

    def _recovered(self, small: Graph, plan: Plan) -> Graph:
        kept, level = positions_left(self.task.coupling, plan.keep), _LEVELS.get(self.task.level, "full")
        with torch.no_grad():
            return recover(self.task.coupling.graph, small, kept, _some_of(self.data), level, Exam(None))[0]


def _some_of(data: Data) -> Data:
    """Of its first batches."""

    def batches() -> Iterator[Batch]:
        seen = 0
        for batch in data.batches():
            yield batch
            seen += batch.samples
            if seen >= _FITTED:
                return

    return replace(data, batches=batches, samples=min(data.samples, _FITTED))
